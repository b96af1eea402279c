-- What must never be, kept by the database.

-- An account key is a key of its account's own product; with it, an account that has keys cannot move to another product.
alter table accounts_account add constraint account_of_its_product unique (id, product_id);
alter table accounts_apikey
    add constraint api_key_account_of_its_product foreign key (account_id, product_id) references accounts_account (id, product_id);

-- Only SHA-256 digests are stored.
alter table accounts_apikey add constraint api_key_digest_is_sha256 check (octet_length(digest) = 32);

-- PostgreSQL knows the time zone too: an unknown one raises here, not in the first verb that rolls a day over.
alter table accounts_account
    add constraint account_time_zone_is_known check ((timestamptz '2000-01-01 00:00:00+00' at time zone time_zone) is not null);

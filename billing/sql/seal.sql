-- The seal of a charge: the first 128 bits of the SHA-256 of a text that says all that the charge was made of. docs/decisions/0062 says what
-- it proves, and why customers are not shown it: whoever knows the rest of the text finds the cost in it by trying.
--
-- A function written in SQL becomes part of the statement that calls it, so a seal costs its arithmetic and no call. Its
-- parts stand between bars, and what is not known is empty; concat() is used because it costs half of as many ||.

-- One movement of a charge: grant (empty: debt alone), amount, change of debt, cash and fee.
create function usage_movement(p_grant bigint, p_amount bigint, p_debt_delta bigint, p_cash bigint, p_fee bigint)
returns text language sql stable as $$
  select concat(p_grant, ':', p_amount, ':', p_debt_delta, ':', p_cash, ':', p_fee)
$$;

-- The text. Instants are microseconds since 1970; p_moved are the movements in their order, a space between two.
create function usage_sealed(
  p_account bigint, p_id uuid, p_outcome text, p_event_at timestamptz, p_recorded_at timestamptz, p_counted_at timestamptz, p_model int,
  p_service_level text, p_quantities bigint[], p_rate_card int, p_price_ids int[], p_unit smallint, p_cost bigint, p_price bigint,
  p_value bigint, p_waived bigint, p_hold bigint, p_first_seq bigint, p_moved text)
returns text language sql stable as $$
  select concat(
    '1|', p_account, '|', p_id, '|', p_outcome, '|', (extract(epoch from p_event_at) * 1000000)::bigint,
    '|', (extract(epoch from p_recorded_at) * 1000000)::bigint, '|', (extract(epoch from p_counted_at) * 1000000)::bigint,
    '|', p_model, '|', p_service_level, '|', p_quantities, '|', p_rate_card, '|', p_price_ids, '|', p_unit,
    '|', p_cost, '|', p_price, '|', p_value, '|', p_waived, '|', p_hold, '|', p_first_seq, '|', p_moved)
$$;

create function usage_seal(p_text text) returns uuid language sql stable as $$
  select encode(substr(sha256(convert_to(p_text, 'UTF8')), 1, 16), 'hex')::uuid
$$;

-- The movements of a charge, in their order; null where there are none.
create function usage_moved(p_account bigint, p_unit smallint, p_first_seq bigint, p_entries smallint) returns text language sql stable as $$
  select string_agg(usage_movement(grant_id, amount, debt_delta, cash_nanos, fee_nanos), ' ' order by seq)
  from ledger_entry where account_id = p_account and unit_id = p_unit and seq >= p_first_seq and seq < p_first_seq + p_entries
$$;

-- The text of a record as it stands now, with its entries as they stand.
create function usage_sealed_record(u usage_record) returns text language sql stable as $$
  select usage_sealed(
    u.account_id, u.id, u.outcome::text, u.event_at, u.recorded_at, u.counted_at, u.model_id, u.service_level, u.quantities, u.rate_card_id,
    u.price_ids, u.unit_id, u.cost_nanos, u.price_nanos, u.value_nanos, u.waived_nanos, u.hold, u.first_seq,
    usage_moved(u.account_id, u.unit_id, u.first_seq, u.entries))
$$;

-- The same of the rating that a record without a price got later: with what was used, as the record says it.
create function usage_sealed_rating(u usage_record, r usage_rating) returns text language sql stable as $$
  select usage_sealed(
    u.account_id, u.id, 'rated', u.event_at, r.rated_at, u.counted_at, u.model_id, u.service_level, u.quantities, r.rate_card_id,
    r.price_ids, r.unit_id, r.cost_nanos, r.price_nanos, r.value_nanos, r.waived_nanos, u.hold, r.first_seq,
    usage_moved(u.account_id, r.unit_id, r.first_seq, r.entries))
$$;

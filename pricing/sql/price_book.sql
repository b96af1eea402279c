-- What was promised at a price stays promised: the price book and every version of terms are append-only.
-- Installed by migration 0002. Refusals raise SQLSTATE 23001 (restrict_violation), which Django reports as IntegrityError.

CREATE FUNCTION pricing_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE '% on % refused: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'restrict_violation';
END $$;

-- Price book: a row has two transitions, each once: an open end is closed, at the earliest now; the row is withdrawn.
-- "Now" is the transaction's start, so that an approval may close a row at the very time that it reads.
CREATE FUNCTION price_book_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.withdrawn_at IS NOT NULL THEN
            RAISE 'INSERT on price_book refused: a new row is not withdrawn' USING ERRCODE = 'restrict_violation';
        END IF;
        NEW.recorded_at := clock_timestamp();
        RETURN NEW;
    END IF;
    IF OLD.withdrawn_at IS NOT NULL THEN
        RAISE 'UPDATE on price_book refused: row % is withdrawn', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF to_jsonb(NEW) - 'valid' - 'withdrawn_at' IS DISTINCT FROM to_jsonb(OLD) - 'valid' - 'withdrawn_at'
       OR lower(NEW.valid) IS DISTINCT FROM lower(OLD.valid) THEN
        RAISE 'UPDATE on price_book refused: amount and identity of row % never change', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.valid IS DISTINCT FROM OLD.valid AND NOT upper_inf(OLD.valid) THEN
        RAISE 'UPDATE on price_book refused: row % is closed already', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.valid IS DISTINCT FROM OLD.valid AND upper(NEW.valid) < now() THEN
        RAISE 'UPDATE on price_book refused: row % cannot be closed into the past', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER price_book_guard BEFORE INSERT OR UPDATE ON price_book FOR EACH ROW EXECUTE FUNCTION price_book_guard();
CREATE TRIGGER price_book_keep BEFORE DELETE ON price_book
    FOR EACH ROW EXECUTE FUNCTION pricing_refuse('price rows are never deleted; withdraw the row');
CREATE TRIGGER price_book_keep_all BEFORE TRUNCATE ON price_book
    FOR EACH STATEMENT EXECUTE FUNCTION pricing_refuse('price rows are never deleted');

-- Versions of terms: written once. Their children are written in the transaction that wrote the version, which recorded_at remembers.
CREATE FUNCTION pricing_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.recorded_at := transaction_timestamp();
    RETURN NEW;
END $$;
CREATE FUNCTION pricing_child_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    recorded timestamptz;
BEGIN
    EXECUTE format('SELECT recorded_at FROM %I WHERE id = $1', TG_ARGV[0]) INTO recorded USING (to_jsonb(NEW) ->> TG_ARGV[1])::int;
    IF recorded IS DISTINCT FROM transaction_timestamp() THEN
        RAISE 'INSERT on % refused: terms are complete when their version is written; write a new version', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER stamp BEFORE INSERT ON pricing_ratecard FOR EACH ROW EXECUTE FUNCTION pricing_stamp();
CREATE TRIGGER stamp BEFORE INSERT ON pricing_planversion FOR EACH ROW EXECUTE FUNCTION pricing_stamp();
CREATE TRIGGER with_parent BEFORE INSERT ON pricing_ratecardmodel
    FOR EACH ROW EXECUTE FUNCTION pricing_child_guard('pricing_ratecard', 'card_id');
CREATE TRIGGER with_parent BEFORE INSERT ON pricing_ratecardprice
    FOR EACH ROW EXECUTE FUNCTION pricing_child_guard('pricing_ratecard', 'card_id');
CREATE TRIGGER with_parent BEFORE INSERT ON pricing_entitlement
    FOR EACH ROW EXECUTE FUNCTION pricing_child_guard('pricing_planversion', 'plan_version_id');
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['pricing_ratecard', 'pricing_ratecardmodel', 'pricing_ratecardprice', 'pricing_planversion',
                                'pricing_entitlement', 'pricing_catalogchange'] LOOP
        EXECUTE format('CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON %I FOR EACH ROW '
                       'EXECUTE FUNCTION pricing_refuse(''terms never change; write a new version'')', name);
        EXECUTE format('CREATE TRIGGER keep_all BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
                       'EXECUTE FUNCTION pricing_refuse(''terms are never deleted'')', name);
    END LOOP;
END $$;

-- A pack may be taken off sale; all else of it is terms.
CREATE FUNCTION credit_pack_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF to_jsonb(NEW) - 'available' IS DISTINCT FROM to_jsonb(OLD) - 'available' THEN
        RAISE 'UPDATE on pricing_creditpack refused: terms never change; write a new version' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER credit_pack_guard BEFORE UPDATE ON pricing_creditpack FOR EACH ROW EXECUTE FUNCTION credit_pack_guard();
CREATE TRIGGER keep BEFORE DELETE ON pricing_creditpack
    FOR EACH ROW EXECUTE FUNCTION pricing_refuse('packs are never deleted; take the pack off sale');
CREATE TRIGGER keep_all BEFORE TRUNCATE ON pricing_creditpack
    FOR EACH STATEMENT EXECUTE FUNCTION pricing_refuse('packs are never deleted');

-- What a wallet counts never turns into something else.
CREATE TRIGGER keep_code BEFORE UPDATE OF code ON pricing_unit
    FOR EACH ROW WHEN (OLD.code IS DISTINCT FROM NEW.code) EXECUTE FUNCTION pricing_refuse('the code of a unit is fixed for ever');
CREATE TRIGGER keep_unit BEFORE UPDATE OF unit_id ON pricing_product
    FOR EACH ROW WHEN (OLD.unit_id IS DISTINCT FROM NEW.unit_id) EXECUTE FUNCTION pricing_refuse('the unit of a product is fixed for ever');

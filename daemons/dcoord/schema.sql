-- The journal's tables, version 1 (PRAGMA user_version): never changed, `schema_2.sql` and so on add to it, for
-- new files and old ones alike. Read by journal.py alone.
--
-- Numbers packed into one rowid, so that a large blob needs one b-tree and no separate index:
--   payloads.key = job << 32 | first index          outcomes.key = job << 32 | serial
--
-- Every change comes through the view `batch` at the end: one INSERT of many rows into it is one
-- statement, whatever the records are, and its triggers put each row where it belongs, in order.

CREATE TABLE meta (
  name  TEXT PRIMARY KEY,       -- cluster, epoch, last_job, probe
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE definitions (
  digest TEXT PRIMARY KEY,
  name   TEXT NOT NULL,
  body   BLOB NOT NULL          -- taskdef.Definition in MessagePack
) STRICT;

CREATE TABLE payloads (
  key   INTEGER PRIMARY KEY,
  count INTEGER NOT NULL,
  items BLOB NOT NULL           -- list of model.Item in MessagePack
) STRICT;

CREATE TABLE jobs (
  job             INTEGER PRIMARY KEY CHECK (job BETWEEN 1 AND 2147483647),
  request_id      TEXT NOT NULL,
  user            TEXT NOT NULL,
  name            TEXT NOT NULL,
  definition      TEXT NOT NULL,
  definition_name TEXT NOT NULL,
  count           INTEGER NOT NULL CHECK (count BETWEEN 0 AND 4294967296),
  details         BLOB NOT NULL,  -- [params, numbers, max_fails, matrix] in MessagePack
  submitted       REAL NOT NULL
) STRICT;

CREATE TABLE frontiers (
  job      INTEGER PRIMARY KEY,
  frontier INTEGER NOT NULL,
  started  REAL NOT NULL
) STRICT;

-- What became of a row's tasks: all that a restart reads. Keyed by where the tasks are, not by when
-- they ended: `node` is the number with the most trailing zeros in first + 1 ... last + 1, so that the
-- rows that may name a task are found under at most 33 nodes (a relational interval tree).
CREATE TABLE heads (
  job     INTEGER NOT NULL,
  node    INTEGER NOT NULL,     -- 0: a row without tasks
  serial  INTEGER NOT NULL,
  first   INTEGER NOT NULL,     -- the lowest index
  last    INTEGER NOT NULL,     -- the highest index
  count   INTEGER NOT NULL,
  offsets BLOB,                 -- indexes less `first`, 1, 2 or 4 bytes each, little-endian; NULL: first ... last in order
  states  BLOB,                 -- a byte each; NULL: none given, all done
  reasons BLOB,                 -- [names, position in names of each] in MessagePack; NULL: none given, all "done"
  sweep   INTEGER,
  PRIMARY KEY (job, node, serial)
) STRICT, WITHOUT ROWID;

CREATE INDEX sweeps ON heads (job, serial) WHERE sweep IS NOT NULL;

CREATE TABLE outcomes (
  key  INTEGER PRIMARY KEY,
  body BLOB NOT NULL            -- messages.Outcome in MessagePack
) STRICT;

CREATE TABLE ends (
  job         INTEGER PRIMARY KEY,
  state       TEXT NOT NULL,
  counts      BLOB NOT NULL,    -- list in MessagePack
  ended       REAL NOT NULL,
  last_serial INTEGER NOT NULL  -- so that a restart need not look at the outcomes of an ended job
) STRICT;

CREATE TABLE workers (          -- those present
  worker TEXT PRIMARY KEY,
  name   TEXT NOT NULL,
  at     REAL NOT NULL
) STRICT;

-- Columns by kind: journal_rows.py. A row whose kind is NULL is padding and meets no trigger.
CREATE VIEW batch (kind, a, b, c, d, e, f, g, h, i, j, k) AS
  SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE 0;

CREATE TRIGGER batch_definition INSTEAD OF INSERT ON batch WHEN NEW.kind = 1 BEGIN
  INSERT INTO definitions VALUES (NEW.a, NEW.b, NEW.c) ON CONFLICT DO NOTHING;
END;

CREATE TRIGGER batch_payload INSTEAD OF INSERT ON batch WHEN NEW.kind = 2 BEGIN
  INSERT INTO payloads VALUES (NEW.a << 32 | NEW.b, NEW.c, NEW.d);
END;

CREATE TRIGGER batch_job INSTEAD OF INSERT ON batch WHEN NEW.kind = 3 BEGIN
  INSERT INTO jobs VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h, NEW.i);
END;

CREATE TRIGGER batch_drop INSTEAD OF INSERT ON batch WHEN NEW.kind = 4 BEGIN
  DELETE FROM payloads WHERE key BETWEEN NEW.a << 32 AND NEW.a << 32 | 4294967295;
  UPDATE meta SET value = NEW.a WHERE name = 'last_job' AND value < NEW.a;
END;

CREATE TRIGGER batch_frontier INSTEAD OF INSERT ON batch WHEN NEW.kind = 5 BEGIN
  INSERT INTO frontiers VALUES (NEW.a, NEW.b, NEW.c)
    ON CONFLICT DO UPDATE SET frontier = excluded.frontier, started = excluded.started;
END;

CREATE TRIGGER batch_outcome INSTEAD OF INSERT ON batch WHEN NEW.kind = 6 BEGIN
  INSERT INTO heads VALUES (NEW.a, NEW.c, NEW.b, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h, NEW.i, NEW.j);
  INSERT INTO outcomes VALUES (NEW.a << 32 | NEW.b, NEW.k);
END;

CREATE TRIGGER batch_end INSTEAD OF INSERT ON batch WHEN NEW.kind = 7 BEGIN
  INSERT INTO ends VALUES (NEW.a, NEW.b, NEW.c, NEW.d, coalesce((
      SELECT max(key) & 4294967295 FROM outcomes WHERE key BETWEEN NEW.a << 32 AND NEW.a << 32 | 4294967295), 0))
    ON CONFLICT DO UPDATE SET state = excluded.state, counts = excluded.counts, ended = excluded.ended,
      last_serial = excluded.last_serial;
END;

CREATE TRIGGER batch_resume INSTEAD OF INSERT ON batch WHEN NEW.kind = 10 BEGIN
  DELETE FROM ends WHERE job = NEW.a;
END;

CREATE TRIGGER batch_worker INSTEAD OF INSERT ON batch WHEN NEW.kind = 8 BEGIN
  INSERT INTO workers VALUES (NEW.a, NEW.b, NEW.c)
    ON CONFLICT DO UPDATE SET name = excluded.name, at = excluded.at;
END;

CREATE TRIGGER batch_worker_gone INSTEAD OF INSERT ON batch WHEN NEW.kind = 9 BEGIN
  DELETE FROM workers WHERE worker = NEW.a;
END;

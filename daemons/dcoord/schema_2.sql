-- What version 2 adds to version 1 (`schema.sql`): who may belong to the cluster; in meta `seal_key`. Read by journal.py alone.

CREATE TABLE tokens (           -- join tokens, as they are now
  id        TEXT PRIMARY KEY,
  hash      BLOB NOT NULL,      -- SHA-256 of the secret; the secret itself is nowhere
  role      TEXT NOT NULL,
  created   REAL NOT NULL,
  expires   REAL NOT NULL,
  uses_left INTEGER,            -- NULL: any number
  used      INTEGER NOT NULL,
  labels    BLOB NOT NULL,      -- list in MessagePack
  revoked   INTEGER NOT NULL CHECK (revoked IN (0, 1))
) STRICT;

CREATE TABLE identities (       -- holders of certificates, as they are now
  id      TEXT PRIMARY KEY,
  role    TEXT NOT NULL,
  name    TEXT NOT NULL,
  token   TEXT NOT NULL,        -- tokens.id; '': a person or the local socket
  labels  BLOB NOT NULL,        -- list in MessagePack
  since   REAL NOT NULL,
  expires REAL NOT NULL,
  revoked INTEGER NOT NULL CHECK (revoked IN (0, 1)),
  removed INTEGER NOT NULL CHECK (removed IN (0, 1)),
  key     BLOB NOT NULL         -- SHA-256 of its public key
) STRICT;

CREATE TRIGGER batch_token INSTEAD OF INSERT ON batch WHEN NEW.kind = 11 BEGIN
  INSERT INTO tokens VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h, NEW.i)
    ON CONFLICT DO UPDATE SET hash = excluded.hash, role = excluded.role, created = excluded.created,
      expires = excluded.expires, uses_left = excluded.uses_left, used = excluded.used, labels = excluded.labels,
      revoked = excluded.revoked;
END;

CREATE TRIGGER batch_identity INSTEAD OF INSERT ON batch WHEN NEW.kind = 12 BEGIN
  INSERT INTO identities VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h, NEW.i, NEW.j)
    ON CONFLICT DO UPDATE SET role = excluded.role, name = excluded.name, token = excluded.token,
      labels = excluded.labels, since = excluded.since, expires = excluded.expires, revoked = excluded.revoked,
      removed = excluded.removed, key = excluded.key;
END;

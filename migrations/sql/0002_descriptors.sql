-- Registered protobuf descriptors: schemas/.

-- Every change of the registry; readers compare its newest version with theirs.
CREATE TABLE everstate.descriptor_versions (
  version  bigint PRIMARY KEY,
  added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  digest   bytea NOT NULL,                     -- SHA-256 of the set as it was given
  files    text[] NOT NULL,                    -- those that changed
  breaking text[] NOT NULL                     -- incompatible changes that were allowed
);

-- The files as they are now, without comments. Those of protobuf itself are never stored.
CREATE TABLE everstate.descriptor_files (
  name    text COLLATE "C" PRIMARY KEY,
  version bigint NOT NULL REFERENCES everstate.descriptor_versions,
  imports text[] COLLATE "C" NOT NULL,
  content bytea NOT NULL                       -- a FileDescriptorProto
);

-- The messages that they define: full name, and how many fields.
CREATE TABLE everstate.descriptor_types (
  name   text COLLATE "C" PRIMARY KEY,
  file   text COLLATE "C" NOT NULL REFERENCES everstate.descriptor_files,
  fields int NOT NULL
);
CREATE INDEX descriptor_types_file ON everstate.descriptor_types (file);

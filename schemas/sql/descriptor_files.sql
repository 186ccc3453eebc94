-- All registered files (their total is bounded). No parameters. Row: content. Index: none, it reads all.
SELECT f.content FROM everstate.descriptor_files f

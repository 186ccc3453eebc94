-- Lets one registration at a time go on; readers are not held up. No parameters. Index: none.
LOCK TABLE everstate.descriptor_versions IN SHARE ROW EXCLUSIVE MODE

-- What makes a file of one version a file of the next: run in one transaction when such a file is opened.

-- name: to_2
ALTER TABLE cascade ADD COLUMN past INTEGER NOT NULL DEFAULT 0;

"""The configuration: what may stand in its files, how they are read, and what is told of them.

What may stand there: `sections`, made of `fields`, and `keys` for the keys file. The whole, and what others receive of
it: `whole`. How a file, the environment and flags become one: `reading`, by way of `document`, `variables`,
`environment` and `validating`. What is wrong, in words: `faults`. What is in force, for people and editors: `showing`,
`schema`, `differences`.

Only `app`, `reload` and `cli` import this package; everyone else receives plain values.
"""

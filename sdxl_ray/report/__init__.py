"""A comparison's report, from records alone: one HTML file, and the same as Markdown and JSON.

It goes one way: `source` (a folder) -> `facts` -> `sections` (blocks of a `document`) -> `page` and `markdown`;
`build.write_report` is all of it.
"""

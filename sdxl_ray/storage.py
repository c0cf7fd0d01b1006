def is_url(x): return "://" in x

"""The HTTP side: routes, the OpenAI protocol, admission, keys, dispatch to replicas."""

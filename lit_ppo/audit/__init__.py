"""Look-ahead audit: what must not know the future, and markets in which nothing can be learned."""

def record(*a, **k):
    print(a, k)

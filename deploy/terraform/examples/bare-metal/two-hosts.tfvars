# Two machines: a coordinator and a worker on the first, a worker on the second. Put your addresses in.
# With one coordinator, nothing is served while it restarts; three machines with a coordinator each have no such moment.
hosts = {
  one = {
    address     = "10.0.0.1"
    coordinator = true
    workers     = [{}]
  }
  two = {
    address = "10.0.0.2"
    workers = [{}]
  }
}

"""`python -m benchmarks`: the one benchmark that there is so far."""

from benchmarks.fallback import main

main()

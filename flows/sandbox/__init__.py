"""Task code in a locked child process: no vault, key, credential, exchange or network (SPEC 8.1, ADR 0011).

Read in this order: ``view`` (which files a task may see), ``landlock``, ``seccomp`` with ``syscalls``, ``process``
(rlimits, capabilities, environment), ``frames`` (what passes between site and child), ``starter`` (the warm parent),
``child`` (locks itself, then works), ``host`` (which layers hold), ``parent`` and ``sandboxed`` (the site's side: a
``Workshop``).

Trusted are this package, Python and its site-packages. A task's code is not, once the child has locked itself.
"""

"""The system calls that a task's code may make, by their numbers on two machines (SPEC 8.1).

A list of what is allowed and not of what is forbidden: what is not here (sockets, ptrace, other processes' memory,
io_uring, namespaces, mounts, keys, bpf, starting programs, changing owners and modes ...) cannot be called, and neither
can what a later kernel adds. The numbers are those of Linux's ``asm/unistd_64.h`` and ``asm-generic/unistd.h``.
"""

ALWAYS = """
# reading and writing what is open
read 0 63
write 1 64
close 3 57
lseek 8 62
pread64 17 67
pwrite64 18 68
readv 19 65
writev 20 66
preadv 295 69
pwritev 296 70
preadv2 327 286
pwritev2 328 287
fstat 5 80
ftruncate 77 46
fallocate 285 47
fadvise64 221 223
fsync 74 82
fdatasync 75 83
flock 73 32
sendfile 40 71
copy_file_range 326 285
dup 32 23
dup2 33 -
dup3 292 24
pipe 22 -
pipe2 293 59
eventfd2 290 19
close_range 436 436
poll 7 -
ppoll 271 73
select 23 -
pselect6 270 72
epoll_create 213 -
epoll_create1 291 20
epoll_ctl 233 21
epoll_wait 232 -
epoll_pwait 281 22
# files by name, which Landlock and bubblewrap restrict
stat 4 -
lstat 6 -
newfstatat 262 79
statx 332 291
access 21 -
faccessat 269 48
faccessat2 439 439
readlink 89 -
readlinkat 267 78
getdents 78 -
getdents64 217 61
getcwd 79 17
chdir 80 49
fchdir 81 50
mkdir 83 -
mkdirat 258 34
rmdir 84 -
unlink 87 -
unlinkat 263 35
rename 82 -
renameat 264 38
renameat2 316 276
statfs 137 43
fstatfs 138 44
umask 95 166
# memory
mmap 9 222
mprotect 10 226
munmap 11 215
mremap 25 216
msync 26 227
mincore 27 232
madvise 28 233
brk 12 214
mlock 149 228
mlock2 325 284
munlock 150 229
mbind 237 235
get_mempolicy 239 236
membarrier 324 283
# threads and time
futex 202 98
futex_waitv 449 449
set_robust_list 273 99
get_robust_list 274 100
set_tid_address 218 96
rseq 334 293
gettid 186 178
sched_yield 24 124
sched_getaffinity 204 123
sched_getparam 143 121
sched_getscheduler 145 120
sched_get_priority_max 146 125
sched_get_priority_min 147 126
getcpu 309 168
nanosleep 35 101
clock_nanosleep 230 115
clock_gettime 228 113
clock_getres 229 114
gettimeofday 96 169
time 201 -
times 100 153
getitimer 36 102
setitimer 38 103
alarm 37 -
pause 34 -
restart_syscall 219 128
exit 60 93
exit_group 231 94
# signals to itself
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
rt_sigpending 127 136
rt_sigtimedwait 128 137
rt_sigsuspend 130 133
sigaltstack 131 132
# what it is
getpid 39 172
getppid 110 173
getpgrp 111 -
getpgid 121 155
getsid 124 156
getuid 102 174
geteuid 107 175
getgid 104 176
getegid 108 177
getgroups 115 158
getresuid 118 148
getresgid 120 150
uname 63 160
sysinfo 99 179
getrusage 98 165
getrlimit 97 163
setrlimit 160 164
getrandom 318 278
arch_prctl 158 -
"""
"""Allowed whatever the arguments: name, number on x86_64, number on aarch64 (``-`` where there is none)."""

CHECKED = """
open 2 -
openat 257 56
clone 56 220
kill 62 129
tgkill 234 131
prctl 157 167
fcntl 72 25
prlimit64 302 261
ioctl 16 29
seccomp 317 277
"""
"""Allowed with some arguments only, which ``seccomp`` checks."""

MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}
"""Linux's names of the machines, the numbers that seccomp knows them by, and their columns above."""


def numbers(table: str, machine: str) -> dict[str, int]:
    """The calls of a table that a machine has: name -> number."""
    column = MACHINES[machine][1]
    rows = [line.split() for line in table.splitlines() if line and not line.startswith("#")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}

//! The system calls a worker may make.
//!
//! An allow-list, because a deny-list is out of date with every kernel. What is not on it fails with EPERM
//! instead of ending the process: libraries probe for calls and go on without them, and a crash would look
//! like the model's. `clone3` fails with ENOSYS, since its flags stand in memory that a filter cannot read;
//! libc then uses `clone`, whose flags are checked: threads yes, processes no.
//!
//! Nothing on the list makes a socket, runs a program, signals another process, traces, mounts, or loads
//! anything into the kernel. `fcntl` is limited to harmless commands because `F_SETOWN` sends signals.

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
mod rules {
    use std::collections::BTreeMap;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    /// Allowed with any arguments.
    const ALLOWED: &[libc::c_long] = &[
        // Memory and threads.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_membarrier,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_getpriority,
        libc::SYS_getcpu,
        libc::SYS_restart_syscall,
        libc::SYS_set_tid_address,
        // Signals of its own.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        // Time and chance.
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        // Descriptors that it has, and memory that it shares.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_ppoll,
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        // Questions about the machine.
        libc::SYS_uname,
        libc::SYS_sysinfo,
        libc::SYS_readlinkat,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
    ];

    /// What drivers need besides: device calls, waiting, directories. Landlock still says which files.
    const ALLOWED_TO_PLUGINS: &[libc::c_long] = &[
        libc::SYS_ioctl,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_pipe2,
        libc::SYS_eventfd2,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_settime,
        libc::SYS_pselect6,
        libc::SYS_getdents64,
        libc::SYS_statfs,
        libc::SYS_fstatfs,
        libc::SYS_pwrite64,
        libc::SYS_flock,
        libc::SYS_msync,
        libc::SYS_mlock,
        libc::SYS_munlock,
        libc::SYS_sched_get_priority_max,
        libc::SYS_sched_get_priority_min,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select,
    ];

    /// What a driver needs to keep files in the one directory that Landlock lets it write to.
    const ALLOWED_TO_CACHES: &[libc::c_long] = &[
        libc::SYS_mkdirat,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
        libc::SYS_fchmod,
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        libc::SYS_renameat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rmdir,
    ];

    const OPENING: &[libc::c_long] = &[
        libc::SYS_openat,
        libc::SYS_openat2,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat,
    ];

    pub fn first(plugin: bool, caches: bool) -> Result<(), String> {
        let allowed = compile(
            first_rules(plugin, caches)?,
            SeccompAction::Errno(libc::EPERM as u32),
            SeccompAction::Allow,
        )?;
        let without_clone3 = compile(
            BTreeMap::from([
                (libc::SYS_clone3, Vec::new()),
                (libc::SYS_openat2, Vec::new()),
            ]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?;
        // Of two filters that both say "errno", the one put on last gives the number.
        apply(&allowed, false)?;
        apply(&without_clone3, false)
    }

    pub fn second(plugin: bool) -> Result<(), String> {
        let mut rules: Rules = OPENING.iter().map(|&call| (call, Vec::new())).collect();
        if plugin {
            // Its libraries are loaded: nothing executable is needed any more.
            deny_executable(&mut rules)?;
        }
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        apply(&compile(rules, SeccompAction::Allow, refuse)?, true)
    }

    fn first_rules(plugin: bool, caches: bool) -> Result<Rules, String> {
        let mut rules: Rules = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
        // Threads, not processes.
        let thread = libc::CLONE_THREAD as u64;
        add(
            &mut rules,
            libc::SYS_clone,
            &[(0, Test::Masked(thread), thread)],
        )?;
        // abort() raises its signal this way.
        let own = u64::from(std::process::id());
        add(&mut rules, libc::SYS_tgkill, &[(0, Test::Equal, own)])?;
        // Its own limits, read only.
        let read_own = [(0, Test::Equal, 0), (2, Test::Equal, 0)];
        add(&mut rules, libc::SYS_prlimit64, &read_own)?;
        // Its own placement, slices and priority; raising one needs a right that is gone.
        for call in [libc::SYS_sched_setaffinity, libc::SYS_sched_setattr] {
            add(&mut rules, call, &[(0, Test::Equal, 0)])?;
        }
        for operation in [
            libc::PR_SET_NAME,
            libc::PR_GET_NAME,
            libc::PR_SET_NO_NEW_PRIVS,
            libc::PR_SET_VMA,
        ] {
            add(
                &mut rules,
                libc::SYS_prctl,
                &[(0, Test::Equal, operation as u64)],
            )?;
        }
        // More filters only take more away.
        let filter = u64::from(libc::SECCOMP_SET_MODE_FILTER);
        add(&mut rules, libc::SYS_seccomp, &[(0, Test::Equal, filter)])?;
        for command in [
            libc::F_GETFD,
            libc::F_SETFD,
            libc::F_GETFL,
            libc::F_DUPFD_CLOEXEC,
            libc::F_ADD_SEALS,
            libc::F_GET_SEALS,
        ] {
            add(
                &mut rules,
                libc::SYS_fcntl,
                &[(1, Test::Equal, command as u64)],
            )?;
        }
        if plugin {
            rules.extend(ALLOWED_TO_PLUGINS.iter().map(|&call| (call, Vec::new())));
            if caches {
                rules.extend(ALLOWED_TO_CACHES.iter().map(|&call| (call, Vec::new())));
            }
            for command in [
                libc::F_DUPFD,
                libc::F_SETFL,
                libc::F_SETLK,
                libc::F_SETLKW,
                libc::F_GETLK,
            ] {
                add(
                    &mut rules,
                    libc::SYS_fcntl,
                    &[(1, Test::Equal, command as u64)],
                )?;
            }
            for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_openat] {
                rules.insert(call, Vec::new());
            }
            #[cfg(target_arch = "x86_64")]
            rules.insert(libc::SYS_open, Vec::new());
        } else {
            let executable = libc::PROT_EXEC as u64;
            add(
                &mut rules,
                libc::SYS_mmap,
                &[(2, Test::Masked(executable), 0)],
            )?;
            add(
                &mut rules,
                libc::SYS_mprotect,
                &[(2, Test::Masked(executable), 0)],
            )?;
            let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
            add(
                &mut rules,
                libc::SYS_openat,
                &[(2, Test::Masked(writing), 0)],
            )?;
            #[cfg(target_arch = "x86_64")]
            add(&mut rules, libc::SYS_open, &[(1, Test::Masked(writing), 0)])?;
        }
        Ok(rules)
    }

    fn deny_executable(rules: &mut Rules) -> Result<(), String> {
        let executable = libc::PROT_EXEC as u64;
        let is_executable = [(2, Test::Masked(executable), executable)];
        add(rules, libc::SYS_mmap, &is_executable)?;
        add(rules, libc::SYS_mprotect, &is_executable)
    }

    /// How the lower half of an argument is compared: the calls here take ints in these places.
    #[derive(Clone, Copy)]
    enum Test {
        Equal,
        Masked(u64),
    }

    /// Adds one way in which `call` matches: all `tests` (argument, comparison, value) hold.
    fn add(rules: &mut Rules, call: libc::c_long, tests: &[(u8, Test, u64)]) -> Result<(), String> {
        let condition = |&(argument, test, value): &(u8, Test, u64)| {
            let operation = match test {
                Test::Equal => SeccompCmpOp::Eq,
                Test::Masked(mask) => SeccompCmpOp::MaskedEq(mask),
            };
            // A pointer must be compared whole; it is only ever compared with null.
            let length = if value == 0 && matches!(test, Test::Equal) {
                SeccompCmpArgLen::Qword
            } else {
                SeccompCmpArgLen::Dword
            };
            SeccompCondition::new(argument, length, operation, value)
        };
        let conditions: Result<Vec<_>, _> = tests.iter().map(condition).collect();
        let rule = conditions
            .and_then(SeccompRule::new)
            .map_err(|e| e.to_string())?;
        rules.entry(call).or_default().push(rule);
        Ok(())
    }

    fn compile(
        rules: Rules,
        otherwise: SeccompAction,
        matching: SeccompAction,
    ) -> Result<BpfProgram, String> {
        let architecture = std::env::consts::ARCH
            .try_into()
            .map_err(|e: seccompiler::BackendError| e.to_string())?;
        SeccompFilter::new(rules, otherwise, matching, architecture)
            .and_then(BpfProgram::try_from)
            .map_err(|e| e.to_string())
    }

    fn apply(program: &BpfProgram, all_threads: bool) -> Result<(), String> {
        let applied = if all_threads {
            seccompiler::apply_filter_all_threads(program)
        } else {
            seccompiler::apply_filter(program)
        };
        applied.map_err(|e| e.to_string())
    }
}

#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
mod rules {
    const NONE: &str = "there is no filter for this processor";

    pub fn first(_plugin: bool, _caches: bool) -> Result<(), String> {
        Err(NONE.to_owned())
    }

    pub fn second(_plugin: bool) -> Result<(), String> {
        Err(NONE.to_owned())
    }
}

/// Puts the first filter on the calling thread. `plugin`: a driver will be loaded; `caches`: it keeps files.
pub use rules::first;
/// Takes the opening of files from all threads.
pub use rules::second;

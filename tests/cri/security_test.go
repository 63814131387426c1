// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/tests/harness"
)

func TestSecurityContexts(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	user := p.run("user", forever, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 3000}
		s.SupplementalGroups = []int64{2000, 4000} // fsGroup comes as one of them
		s.NoNewPrivs = true
		s.ReadonlyRootfs = true
		s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
	}))
	p.want(user, "id -u; id -g", "1000\n3000")
	p.want(user, "grep -E '^(Groups|NoNewPrivs|CapBnd|CapEff)' /proc/1/status | tr -d ' \\t'",
		"Groups:200030004000\nCapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1")
	if out, code := p.exec(user, "touch /x"); code == 0 || !strings.Contains(out, "Read-only") {
		t.Errorf("touch on a read-only root = %q, %d", out, code)
	}
	caps := p.run("caps", forever, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN"}}
	}))
	p.want(caps, "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu", "1400")
	if _, code := p.exec(caps, "touch /x && chown 1000 /x"); code == 0 {
		t.Error("chown works without CAP_CHOWN")
	}
	if shim, vmm, err := harness.Pids(p.id); err != nil {
		t.Error(err)
	} else if err := harness.ShimConfined(shim, vmm); err != nil {
		t.Errorf("the shim, pid %d: %v", shim, err)
	} else if _, err := harness.Confined(vmm); err != nil {
		t.Errorf("the VMM, pid %d: %v", vmm, err)
	}
	plain := p.run("plain", forever)
	if out, code := p.exec(plain, "ip link set lo mtu 1300"); code == 0 {
		t.Errorf("a container without NET_ADMIN changes the network: %s", out)
	}
}

// profile answers mkdir with 38, ENOSYS, and all but what a shell needs with what the profile says.
const profile = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`

// byDefault refuses what is not on the list, sync(2) above all, with 28, ENOSPC.
const byDefault = `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":28,"syscalls":[{"action":"SCMP_ACT_ALLOW","names":[%s]}]}`

func TestSeccompIsAppliedInTheGuest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) *runtime.SecurityProfile {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: path}
	}
	seccomp := func(s *runtime.SecurityProfile) func(*runtime.ContainerConfig) {
		return security(func(c *runtime.LinuxContainerSecurityContext) { c.Seccomp = s })
	}
	p := runPod(t)
	local := p.run("local", forever, seccomp(file("a.json", profile)))
	p.want(local, "grep ^Seccomp: /proc/1/status | tr -d '\\t'", "Seccomp:2")
	p.want(local, "mkdir /d 2>&1", "mkdir: can't create directory '/d': Function not implemented")
	errno := p.run("errno", forever,
		seccomp(file("b.json", strings.ReplaceAll(byDefault, "%s", `"`+strings.Join(shellCalls, `","`)+`"`))))
	p.want(errno, "mkdir /d 2>&1", "mkdir: can't create directory '/d': No space left on device")
	byRuntime := p.run("default", forever)
	p.want(byRuntime, "grep ^Seccomp: /proc/1/status | tr -d '\\t'", "Seccomp:2")
	p.want(byRuntime, "unshare -U true 2>&1", "unshare: unshare(0x10000000): Operation not permitted")
	none := p.run("none", forever, seccomp(&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}))
	p.want(none, "grep ^Seccomp: /proc/1/status | tr -d '\\t'", "Seccomp:0")
}

// shellCalls are what a shell, and the runtime before it, need to be let do.
var shellCalls = []string{
	"access", "arch_prctl", "brk", "capget", "capset", "chdir", "clock_nanosleep", "clone", "clone3", "close",
	"close_range", "dup", "dup2", "dup3", "epoll_create1",
	"epoll_ctl", "epoll_pwait", "execve", "execveat", "exit", "exit_group", "faccessat", "faccessat2", "fchdir", "fchown",
	"fcntl", "fork", "fstat", "fstatfs", "futex",
	"getcwd", "getdents64", "getegid", "geteuid", "getgid", "getpgrp", "getpid", "getppid", "getrandom", "getuid", "ioctl",
	"kill", "lseek", "lstat", "mmap", "mprotect",
	"munmap", "nanosleep", "newfstatat", "open", "openat", "openat2", "pipe", "pipe2", "poll", "ppoll", "prctl", "pread64",
	"prlimit64", "read", "readlink", "readlinkat",
	"recvmsg", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sendmsg", "set_robust_list", "set_tid_address",
	"setgid", "setgroups", "setpgid", "setresgid",
	"setresuid", "setsid", "setuid", "sigaltstack", "socket", "socketpair", "stat", "statfs", "statx", "tgkill", "umask",
	"uname", "unlink", "vfork", "wait4", "waitid",
	"write", "writev", "connect", "bind", "listen", "accept4", "sysinfo", "mount_setattr", "keyctl", "getsockopt",
	"setsockopt", "fchmod", "sched_getaffinity",
	"select", "pselect6", "sendto", "recvfrom", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigpending", "pause", "madvise",
	"mremap", "sched_yield", "gettid", "getpgid", "getsid",
	"getrlimit", "setrlimit", "getresuid", "getresgid", "setfsuid", "setfsgid", "unlinkat", "eventfd2", "signalfd4",
	"timerfd_create", "restart_syscall", "seccomp", "fadvise64",
	"sendfile", "splice", "pwrite64", "readv", "preadv", "chmod", "fchmodat", "fchownat", "epoll_wait", "getgroups",
	"clock_gettime", "gettimeofday", "time", "getpeername",
	"getsockname", "shutdown", "personality", "memfd_create", "ftruncate", "inotify_init1", "inotify_add_watch", "flock",
	"link", "linkat", "symlink", "rename", "mount", "umount2",
	"pivot_root", "setns", "unshare", "pidfd_open", "pidfd_send_signal", "setpriority", "getpriority", "membarrier",
	"tkill", "rt_tgsigqueueinfo", "rt_sigqueueinfo",
}

func TestPrivilegedIsPrivilegedInsideTheVM(t *testing.T) {
	t.Parallel()
	p := runPod(t, func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.run("c", forever, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Privileged = true
		s.Seccomp = nil
	}))
	checkPrivileged(t, func(script string) string { out, _ := p.exec(c, script); return out })
}

func TestPrivilegedByCtr(t *testing.T) {
	t.Parallel()
	d := node(t)
	id := "privileged-ctr"
	if r := d.Ctr(t.Context(), "-n", "k8s.io", "run", "-d", "--privileged", "--runtime", harness.Runtime, harness.Image,
		id, "sleep", "1000"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	defer func() {
		d.Ctr(t.Context(), "-n", "k8s.io", "task", "rm", "-f", id)
		d.Ctr(t.Context(), "-n", "k8s.io", "container", "rm", id)
	}()
	checkPrivileged(t, func(script string) string {
		r := d.Ctr(t.Context(), "-n", "k8s.io", "task", "exec", "--exec-id", "x", id, "/bin/sh", "-c", script)
		return r.Stdout + r.Stderr
	})
}

func checkPrivileged(t *testing.T, sh func(string) string) {
	t.Helper()
	all := func(script string, wants ...string) {
		t.Helper()
		out := sh(script)
		for _, w := range wants {
			if !strings.Contains(out, w) {
				t.Errorf("%s = %q, want %q in it", script, out, w)
			}
		}
	}
	all("grep ^CapEff /proc/1/status", "000001ff") // as many as containerd itself has
	all("grep ^Seccomp: /proc/1/status", "0")
	all("ls -l /dev/kmsg /dev/mem 2>&1; head -c 1 /dev/kmsg >/dev/null && echo read", "/dev/kmsg", "read")
	all("mkdir /m && mount -t tmpfs none /m && echo mounted", "mounted")
	all("echo 1 >/proc/sys/vm/overcommit_memory && cat /proc/sys/vm/overcommit_memory", "1")
	all("mknod /n c 1 3 && echo x >/n && echo wrote", "wrote")
	if out := sh("ls /dev"); strings.Contains(out, "vport") {
		t.Errorf("the agent's own channel is given away:\n%s", out)
	}
	if out := sh("uname -r; cat /proc/cmdline"); !strings.Contains(out, "cloud") && !strings.Contains(out, "coco") {
		t.Logf("kernel: %s", out) // the guest's, whatever it is called
	}
}

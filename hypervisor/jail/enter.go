// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// copied is where the copy of the loader lies before it covers the original.
const copied = "/.loader"

// step is a system call with the words for its failure.
type step struct {
	what string
	do   func() error
}

func run(steps ...step) error {
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

// Enter makes the root of the calling process, which is the first of its namespaces, an empty tmpfs with
// a /proc that shows no process but itself.
func Enter() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	unix.Umask(0) // modes below are meant as they stand
	return run(
		step{"make the mounts private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		// Any directory will do as the place: the old root is gone in a moment.
		step{"mount a root", func() error {
			return unix.Mount("coco", "/proc", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=2m,nr_inodes=512")
		}},
		step{"enter the root", func() error { return unix.Chdir("/proc") }},
		step{"make /proc", func() error { return unix.Mkdir("proc", 0o555) }},
		step{"mount /proc", func() error { return unix.Mount("proc", "proc", "proc", quiet, "") }},
		step{"make /dev", func() error { return unix.Mkdir("dev", 0o755) }},
		step{"mount /dev", func() error {
			return unix.Mount("coco", "dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k,nr_inodes=32")
		}},
		// With both names the same, the old root is stacked on the new one, and is where the process is.
		step{"change the root", func() error { return unix.PivotRoot(".", ".") }},
		step{"leave the host's root", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		step{"enter the new root", func() error { return unix.Chdir("/") }},
		step{"forget the host's name", func() error { return unix.Sethostname([]byte("vmm")) }},
		step{"forget the domain's name", func() error { return unix.Setdomainname([]byte("(none)")) }},
	)
}

// Furnish puts into the root what the program needs to start. files are those that travelled beside the
// Spec; they are closed. At the end nothing in the root can be written to.
//
// The loader is covered by a copy with mode 0711. The kernel marks a process that executes what it may
// not read as not dumpable, which no other means reaches that outlives exec: nobody but root can then
// look into it, and it leaves no core.
func (s Spec) Furnish(files []int) error {
	defer func() {
		for _, fd := range files {
			_ = unix.Close(fd) // nothing was written
		}
	}()
	want := len(s.Trees)
	if s.Loader != "" {
		want++
	}
	if len(files) != want {
		return fmt.Errorf("%d files came, %d are meant", len(files), want)
	}
	for i, at := range s.Trees {
		if err := place(files[i], at); err != nil {
			return fmt.Errorf("show %s: %w", at, err)
		}
	}
	if s.Disks {
		if err := unix.Mkdir(Disks, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", Disks, err)
		}
	}
	for _, l := range s.Links {
		if err := unix.Symlink(l.Target, l.Path); err != nil {
			return fmt.Errorf("link %s: %w", l.Path, err)
		}
	}
	for _, d := range s.Devices {
		if err := s.device(d); err != nil {
			return fmt.Errorf("make device %s: %w", d.Path, err)
		}
	}
	if s.Loader != "" {
		if err := coverLoader(files[want-1], s.Loader); err != nil {
			return fmt.Errorf("replace %s: %w", s.Loader, err)
		}
	}
	unix.Umask(0o077)
	return run(
		step{"make /dev read-only", func() error { return remount("/dev", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC) }},
		step{"make the root read-only", func() error { return remount("/", sealed) }},
	)
}

// sealed are the flags of a root that stays as it is.
const sealed = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

func remount(at string, flags uintptr) error {
	return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
}

// place mounts a detached tree in the root.
func place(fd int, at string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := os.MkdirAll(path.Dir(at), 0o755); err != nil { // for the VMM's user
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	} else {
		point, err := unix.Open(at, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o444)
		if err != nil {
			return err
		}
		_ = unix.Close(point) // empty
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// device makes a node that the program may open. The common ones are everybody's.
func (s Spec) device(d Device) error {
	if err := unix.Mknod(d.Path, unix.S_IFCHR|0o600, int(d.Number)); err != nil { //nolint:gosec // as stat(2) has it
		return err
	}
	return unix.Chown(d.Path, int(s.User), int(s.User))
}

func coverLoader(fd int, at string) error {
	out, err := unix.Open(copied, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o711)
	if err != nil {
		return err
	}
	for n := 1; n > 0 && err == nil; {
		n, err = unix.Sendfile(out, fd, nil, 1<<20)
	}
	if err = errors.Join(err, unix.Close(out)); err != nil {
		return err
	}
	return unix.Mount(copied, at, "", unix.MS_BIND, "")
}

// Drop makes the calling thread, and the program that it executes next, a user without any privilege, or root with
// few of them. files are those that the program gets.
func (s Spec) Drop(files []int) error {
	user := uintptr(s.User)
	steps := []step{
		limit("core", unix.RLIMIT_CORE, 0),
		{"empty the bounding set", s.dropBounding},
		{"empty the ambient set", func() error {
			return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
		}},
		// The calls of package unix would change all threads; those others are gone with exec.
		{"leave all groups", func() error { return raw(unix.SYS_SETGROUPS, 0, 0, 0) }},
	}
	if s.User != 0 {
		steps = append(steps,
			step{"keep capabilities", func() error {
				return unix.Prctl(unix.PR_SET_KEEPCAPS, uintptr(min(1, len(s.Keep))), 0, 0, 0)
			}},
			limit("processes", unix.RLIMIT_NPROC, s.Processes), // which root's are not bound by
			step{fmt.Sprintf("become group %d", s.User), func() error { return raw(unix.SYS_SETRESGID, user, user, user) }},
			step{fmt.Sprintf("become user %d", s.User), func() error { return raw(unix.SYS_SETRESUID, user, user, user) }})
	}
	return run(append(steps,
		step{"give up the capabilities", func() error {
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			for _, c := range s.Keep {
				data[c/32].Permitted |= 1 << (c % 32)
				data[c/32].Effective |= 1 << (c % 32)
				if s.User != 0 { // root's need not be inherited
					data[c/32].Inheritable |= 1 << (c % 32)
				}
			}
			return unix.Capset(&h, &data[0])
		}},
		step{"hand on the capabilities", s.raiseAmbient},
		step{"exclude new privileges", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		step{"restrict it by Landlock", func() error { return s.restrict(LandlockVersion(), files) }},
		// A change of user forgets it.
		step{"die with the parent", func() error {
			return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		}},
	)...)
}

// raiseAmbient makes a user's capabilities outlive exec, as root's do.
func (s Spec) raiseAmbient() error {
	if s.User == 0 {
		return nil
	}
	for _, c := range s.Keep {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// dropBounding leaves nothing in the bounding set but what is kept.
func (s Spec) dropBounding() error {
	const lastCapability = 63
	for c := range lastCapability + 1 {
		if slices.Contains(s.Keep, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // the kernel knows no more
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func limit(what string, resource int, to uint64) step {
	return step{"limit " + what, func() error {
		var now unix.Rlimit
		if err := unix.Prlimit(0, resource, nil, &now); err != nil {
			return err
		}
		to := min(to, now.Max)
		return unix.Prlimit(0, resource, &unix.Rlimit{Cur: to, Max: to}, nil)
	}}
}

func raw(trap, a, b, c uintptr) error {
	if _, _, errno := unix.RawSyscall(trap, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Lender makes files that belong to others accessible to the user of one jail, for a program that opens files by
// name. The owner on the disk stays as it is. A regular file is mounted apart from its directory, with its owner
// mapped to the user (an idmapped mount, Linux 5.12). A block device gets another node, which belongs to the user.
// The mount of a file that is only to be read is read-only: the user, being the owner there, could otherwise open it
// for writing.
//
// A nil *Lender lends nothing. Methods may be called at the same time.
type Lender struct {
	user uint32

	mu     sync.Mutex
	spaces map[owner]*os.File // guarded by mu; user namespaces that map an owner to the user; nil: closed
}

// owner is whom a file belongs to.
type owner struct{ uid, gid uint32 }

// deviceNode is the name of a block device's node in the file system that is made for it.
const deviceNode = "disk"

// NewLender makes the lender of the jail that a program with these options gets; nil: the program needs none, since it
// opens no files by name, or has the capability to open all.
func NewLender(o Options) *Lender {
	if !o.Disks || o.User == 0 || o.overrides() {
		return nil
	}
	return &Lender{user: o.User, spaces: map[owner]*os.File{}}
}

// Close ends the lending. A file or directory that was lent stays accessible as long as it is open or mounted.
func (l *Lender) Close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ns := range l.spaces {
		_ = ns.Close() // only a reference
	}
	l.spaces = nil
}

// Lends tells why files of root in the file systems of directories, which may be yet to be made, cannot be lent to a
// user; nil: they can.
func Lends(user uint32, dirs ...string) error {
	l := &Lender{user: user, spaces: map[owner]*os.File{}}
	defer l.Close()
	for _, dir := range dirs {
		if err := l.lends(dir); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lender) lends(dir string) error {
	d, err := os.Open(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		d, err = os.Open(dir)
	}
	if err != nil {
		return err
	}
	defer d.Close()
	tree, err := l.idmapped(d, owner{}, true)
	if err != nil {
		return err
	}
	return unix.Close(tree)
}

// Lend opens a file again so that the user may open the new descriptor's name in /proc. The file is
// returned as it is if it is neither a regular file nor a block device, or if the user may open it anyway. The caller
// closes the new file, and keeps its own.
func (l *Lender) Lend(f *os.File) (*os.File, error) {
	if l == nil {
		return f, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "fcntl", Path: f.Name(), Err: err}
	}
	access := flags & unix.O_ACCMODE
	if st.Mode&unix.S_IWUSR == 0 { // not even its owner may write to it
		access = unix.O_RDONLY
	}
	readOnly := access == unix.O_RDONLY
	open, private := openToAll(st.Mode, readOnly)
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFBLK || open && private {
		return f, nil
	}
	tree, name, err := l.tree(f, st, readOnly)
	if err != nil {
		if open { // what is in memory cannot be mounted (memfd)
			return f, nil
		}
		return nil, err
	}
	defer unix.Close(tree)
	at := fmt.Sprintf("/proc/self/fd/%d", tree)
	if name != "" {
		at += "/" + name
	}
	fd, err := unix.Open(at, access|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open the mount of", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// openToAll tells by the mode of a file whether every user may open it as the VMM has to, and whether no user may do
// more than that.
func openToAll(mode uint32, readOnly bool) (open, private bool) {
	const read, write = 0o4, 0o2
	if readOnly {
		return mode&read != 0, mode&write == 0
	}
	return mode&(read|write) == read|write, true
}

// tree makes a mount that is not attached anywhere, of the file itself if name is empty, or of a directory where the
// file has that name.
func (l *Lender) tree(f *os.File, st unix.Stat_t, readOnly bool) (fd int, name string, err error) {
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		fd, err = l.device(st.Rdev, readOnly)
		if err != nil {
			err = fmt.Errorf("make a node of device %s for the VMM's user: %w", f.Name(), err)
		}
		return fd, deviceNode, err
	}
	fd, err = l.idmapped(f, owner{st.Uid, st.Gid}, readOnly)
	return fd, "", err
}

// idmapped makes a mount of a file or directory where what belongs to an owner belongs to the user.
func (l *Lender) idmapped(f *os.File, of owner, readOnly bool) (_ int, err error) {
	ns, err := l.space(of)
	if err != nil {
		return -1, fmt.Errorf("lend %s to user %d: make a user namespace (user.max_user_namespaces limits them): %w",
			f.Name(), l.user, err)
	}
	fd, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &fs.PathError{Op: "open_tree", Path: f.Name(), Err: err}
	}
	attr := &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE, Userns_fd: uint64(ns.Fd()),
	}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = unix.Close(fd) // not attached
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("its file system has no idmapped mounts: %w", err)
		}
		return -1, fmt.Errorf("lend %s to user %d: mount_setattr: %w", f.Name(), l.user, err)
	}
	return fd, nil
}

// device makes a file system with one node of a block device.
func (l *Lender) device(number uint64, readOnly bool) (_ int, err error) {
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(ctx)
	for key, value := range map[string]string{"mode": "755", "size": "4k", "nr_inodes": "2"} {
		if err := unix.FsconfigSetString(ctx, key, value); err != nil {
			return -1, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fsmount", err)
	}
	mode := uint32(unix.S_IFBLK | 0o600)
	if readOnly {
		mode = unix.S_IFBLK | 0o400
	}
	user := int(l.user)
	err = run(
		step{"mknod", func() error {
			return unix.Mknodat(fd, deviceNode, mode, int(number)) //nolint:gosec // as stat(2) has it
		}},
		step{"chown", func() error { return unix.Fchownat(fd, deviceNode, user, user, unix.AT_SYMLINK_NOFOLLOW) }},
		step{"mount_setattr", func() error { // so that its owner cannot change the node
			return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
				Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
				Propagation: unix.MS_PRIVATE,
			})
		}},
	)
	if err != nil {
		_ = unix.Close(fd) // not attached
		return -1, err
	}
	return fd, nil
}

// space is the user namespace that maps an owner to the user. The first call for an owner makes it.
func (l *Lender) space(of owner) (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spaces == nil {
		return nil, os.ErrClosed
	}
	if ns := l.spaces[of]; ns != nil {
		return ns, nil
	}
	ns, err := userNamespace(of, l.user)
	if err == nil {
		l.spaces[of] = ns
	}
	return ns, err
}

// userNamespace makes a user namespace where an owner is the user. A namespace begins with a process: it is this
// program, killed at once. Until the process is reaped, it names its namespace.
func userNamespace(of owner, user uint32) (*os.File, error) {
	runtime.LockOSThread() // the death of the thread would be the process's
	defer runtime.UnlockOSThread()
	ids := func(of uint32) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: int(of), HostID: int(user), Size: 1}}
	}
	p, err := os.StartProcess("/proc/self/exe", []string{"coco", "launch"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids(of.uid), GidMappings: ids(of.gid), Pdeathsig: syscall.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	err = p.Kill()
	ns, oerr := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	_, werr := p.Wait()
	if err = errors.Join(err, oerr, werr); err != nil {
		if ns != nil {
			_ = ns.Close() // only a reference
		}
		return nil, err
	}
	return ns, nil
}

// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Options say what a program needs.
type Options struct {
	User      uint32 // uid and gid; 0 only for a program that is named Capabilities
	Processes uint64 // most processes and threads; 0: 4096
	// Paths are files and directories that the program needs to start, besides those of the system and
	// those of its own directory. Kept are such that it needs as long as it runs, and may write to.
	Paths, Kept []string
	// Memory are directories that the program may write to as long as it runs: file systems in memory that nobody else
	// has, and that are gone with the program.
	Memory []string
	// Capabilities are all that the program has.
	Capabilities []int
	// Disks says that the program opens its files by name, so that the directory Disks is there. Files are lent to its
	// user (Lender) unless it has the capability dac_override.
	Disks bool
	// Devices are nodes in /dev that the program may open; those that do not exist are left out.
	Devices []string
}

// AllDevices are the paths of all devices that the program may open, also of those that are not there.
func (o Options) AllDevices() []string { return slices.Concat(common, o.Devices) }

// overrides tells whether the program may open the files of all users.
func (o Options) overrides() bool { return slices.Contains(o.Capabilities, unix.CAP_DAC_OVERRIDE) }

const defaultProcesses = 4096

var (
	// system are the directories of programs and libraries; some of them are symbolic links into others.
	system = []string{"/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin"}
	// besides are what the dynamic loader and programs' own links go by.
	besides = []string{"/etc/ld.so.cache", "/etc/alternatives"}
	// stores are directories of which a program there may need any part.
	stores = []string{"/nix/store", "/gnu/store"}
	// common are devices without any power.
	common = []string{"/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"}
)

// Plan is a jail that was prepared.
type Plan struct {
	Spec   Spec
	Binary string     // the program's path without symbolic links, which is what to execute
	Files  []*os.File // travel beside Spec
}

// Prepare opens what the program at the path binary needs. The caller closes the plan.
func Prepare(binary string, o Options) (_ *Plan, err error) {
	if o.User == 0 && len(o.Capabilities) == 0 {
		return nil, errors.New("a VMM must have a user of its own, not 0")
	}
	p := &Plan{Spec: Spec{User: o.User, Processes: o.Processes, Keep: o.Capabilities, Kept: o.Kept, Disks: o.Disks}}
	if p.Spec.Processes == 0 {
		p.Spec.Processes = defaultProcesses
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.Binary, err = filepath.EvalSymlinks(binary); err != nil {
		return nil, fmt.Errorf("%s: %w", binary, err)
	}
	if err := p.trees(slices.Concat(o.Paths, o.Kept)); err != nil {
		return nil, err
	}
	for _, path := range o.Memory {
		if err := p.memory(path, o.User); err != nil {
			return nil, err
		}
	}
	if err := p.devices(slices.Concat(common, o.Devices)); err != nil {
		return nil, err
	}
	return p, p.loader()
}

// Close closes the files.
func (p *Plan) Close() {
	for _, f := range p.Files {
		_ = f.Close() // only read
	}
}

func (p *Plan) trees(more []string) error {
	for _, dir := range system {
		switch st, err := os.Lstat(dir); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case st.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(dir)
			if err != nil {
				return err
			}
			p.Spec.Links = append(p.Spec.Links, Link{dir, target})
		case st.IsDir():
			if err := p.tree(dir, false); err != nil {
				return err
			}
		}
	}
	for _, path := range besides {
		if _, err := os.Stat(path); err == nil {
			more = append(more, path)
		}
	}
	for _, path := range append(more, home(p.Binary)) {
		if p.covered(path) {
			continue
		}
		if err := p.tree(path, slices.Contains(p.Spec.Kept, path)); err != nil {
			return err
		}
	}
	return nil
}

// home is what belongs to a program: the directory that its bin is in, or else the program alone.
func home(binary string) string {
	for _, s := range stores {
		if strings.HasPrefix(binary, s+"/") {
			return s
		}
	}
	dir := filepath.Dir(binary)
	prefix := filepath.Dir(dir)
	if slices.Contains([]string{"bin", "sbin", "libexec"}, filepath.Base(dir)) && prefix != "/" {
		return prefix
	}
	return binary
}

// covered says whether a path is in a tree that is there already.
func (p *Plan) covered(path string) bool {
	return slices.ContainsFunc(p.Spec.Trees, func(t string) bool { return path == t || strings.HasPrefix(path, t+"/") })
}

// tree opens a detached mount of what is at path.
func (p *Plan) tree(path string, writable bool) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("%q cannot be shown to a VMM: not the clean absolute path of something below the root", path)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	p.Files = append(p.Files, os.NewFile(uintptr(fd), path))
	p.Spec.Trees = append(p.Spec.Trees, path)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if writable {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	} else {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return &fs.PathError{Op: "mount_setattr (Linux 5.12 or later)", Path: path, Err: err}
	}
	return nil
}

// memorySize is the size of a file system in memory, as tmpfs takes it.
const memorySize = "4m"

// memory makes a file system in memory that belongs to the program's user. It is mounted nowhere but in the jail.
func (p *Plan) memory(path string, user uint32) error {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	id := strconv.FormatUint(uint64(user), 10)
	for _, option := range [][2]string{{"size", memorySize}, {"mode", "0700"}, {"uid", id}, {"gid", id}} {
		if err := unix.FsconfigSetString(fd, option[0], option[1]); err != nil {
			return fmt.Errorf("a file system in memory with %s=%s: %w", option[0], option[1], err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	const quiet = unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, quiet)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	p.Files = append(p.Files, os.NewFile(uintptr(mount), path))
	p.Spec.Trees, p.Spec.Kept = append(p.Spec.Trees, path), append(slices.Clone(p.Spec.Kept), path)
	return nil
}

func (p *Plan) devices(paths []string) error {
	for _, path := range paths {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		case st.Mode&unix.S_IFMT != unix.S_IFCHR || filepath.Dir(path) != "/dev":
			return fmt.Errorf("%s is not a character device in /dev", path)
		}
		p.Spec.Devices = append(p.Spec.Devices, Device{path, st.Rdev})
	}
	return nil
}

// loader finds the program's dynamic loader. A script has none of its own: its interpreter's is the
// system's, which is that of /bin/sh.
func (p *Plan) loader() error {
	path, err := interpreter(p.Binary)
	if err == nil && path == "" {
		return nil
	}
	if err != nil {
		if path, err = interpreter("/bin/sh"); err != nil || path == "" {
			return nil // nothing to replace
		}
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	if !p.covered(path) {
		return nil // it is not there to begin with: exec says so
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	p.Files, p.Spec.Loader = append(p.Files, f), path
	return nil
}

// interpreter reads the path of an ELF program's dynamic loader, "" for a static one. The layout is that of
// 64-bit ELF, little-endian (System V ABI, chapters 4 and 5).
func interpreter(program string) (string, error) {
	const (
		headerSize, phoff, phentsize, phnum = 64, 0x20, 0x36, 0x38 // of the file
		segmentSize, offset, size, interp   = 56, 0x08, 0x20, 3    // of a segment; PT_INTERP
	)
	f, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := make([]byte, headerSize)
	if _, err := f.ReadAt(h, 0); err != nil || !bytes.HasPrefix(h, []byte("\x7fELF\x02\x01")) {
		return "", fmt.Errorf("%s is no ELF program", program)
	}
	le := binary.LittleEndian
	for i := range uint64(le.Uint16(h[phnum:])) {
		s := make([]byte, segmentSize)
		at := le.Uint64(h[phoff:]) + i*uint64(le.Uint16(h[phentsize:]))
		if _, err := f.ReadAt(s, int64(at)); err != nil { //nolint:gosec // a wrong place is an error
			return "", err
		}
		if le.Uint32(s) != interp {
			continue
		}
		path := make([]byte, min(le.Uint64(s[size:]), unix.PathMax))
		_, err := f.ReadAt(path, int64(le.Uint64(s[offset:]))) //nolint:gosec // likewise
		return strings.TrimRight(string(path), "\x00"), err
	}
	return "", nil
}

// Private says why a program would be dumpable in a jail; nil: it would not.
func Private(program string) error {
	path, err := filepath.EvalSymlinks(program)
	if err != nil {
		return err
	}
	loader, err := interpreter(path)
	switch {
	case err != nil:
		return fmt.Errorf("%s is a script: what it executes in the end decides", program)
	case loader == "":
		return fmt.Errorf("%s is linked statically, or a loader itself: install a VMM that is loaded by the system's ld.so",
			program)
	}
	return nil
}

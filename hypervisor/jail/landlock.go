// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// landlockPart lists the access rights that one version (ABI) of Landlock added and that restrict handles; Linux,
// Documentation/userspace-api/landlock.rst.
type landlockPart struct {
	version         int
	linux           string // the first release with this version
	what            string // for messages: the rights in words
	fs, net, scoped uint64 // masks of rights, as in landlock_ruleset_attr
}

const (
	onFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | readFile | writeFile | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

	readFile  = unix.LANDLOCK_ACCESS_FS_READ_FILE
	writeFile = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	readTree  = readFile | unix.LANDLOCK_ACCESS_FS_READ_DIR
	runTree   = readTree | unix.LANDLOCK_ACCESS_FS_EXECUTE
	writeTree = readTree | writeFile | unix.LANDLOCK_ACCESS_FS_REFER |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	makeDevice = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
)

var landlockParts = []landlockPart{
	{version: 1, linux: "5.13", what: "files", fs: (runTree | writeTree | makeDevice) &^ (landlock2 | landlock3)},
	{version: 2, linux: "5.19", what: "links between directories", fs: landlock2},
	{version: 3, linux: "6.2", what: "truncation of files", fs: landlock3},
	{version: 4, linux: "6.7", what: "TCP", net: unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
	{version: 5, linux: "6.10", what: "ioctl on devices", fs: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
	{
		version: 6, linux: "6.12", what: "abstract sockets and signals",
		scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL,
	},
}

// Rights that came after the first version.
const (
	landlock2 = unix.LANDLOCK_ACCESS_FS_REFER
	landlock3 = unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// LandlockVersion is the version (ABI) of the kernel's Landlock; 0: it has none, or it is not switched on.
func LandlockVersion() int {
	n, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// LandlockLacks returns an error that names the access rights which a version of Landlock cannot restrict, or nil if it
// has all those that a jail uses.
func LandlockLacks(version int) error {
	var lacks []string
	var since string
	for _, p := range landlockParts {
		if p.version > version {
			lacks = append(lacks, p.what)
			since = p.linux
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("no rules for %s: Linux %s or later with landlock in its lsm= list has them",
		strings.Join(lacks, ", "), since)
}

// landlockAttr returns the rights that the ruleset denies unless a rule allows them. A ruleset with file rights also
// denies every mount, so they are left out for a program that runs as root, such as virtiofsd: it mounts file systems.
func (s Spec) landlockAttr(version int) unix.LandlockRulesetAttr {
	var a unix.LandlockRulesetAttr
	for _, p := range landlockParts {
		if p.version > version {
			break
		}
		if s.User != 0 {
			a.Handled_access_fs |= p.fs
		}
		a.Handled_access_net |= p.net
		a.Scoped |= p.scoped
	}
	return a
}

// landlockRule allows access to a file, or to a directory and all below it, given by path or by descriptor.
type landlockRule struct {
	path   string // empty: fd
	fd     int
	access uint64
}

// landlockRules returns the rules for the files in the root and for the inherited descriptors files: a VMM may reopen
// these by their names in /proc/self/fd.
func (s Spec) landlockRules(files []int) ([]landlockRule, error) {
	rules := []landlockRule{{path: "/proc", access: readTree}}
	for _, at := range s.Trees {
		access := uint64(runTree)
		if slices.Contains(s.Kept, at) {
			access = writeTree
		}
		rules = append(rules, landlockRule{path: at, access: access})
	}
	for _, d := range s.Devices {
		access := uint64(readFile | writeFile)
		if !slices.Contains(common, d.Path) {
			access |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
		}
		rules = append(rules, landlockRule{path: d.Path, access: access})
	}
	if s.Disks {
		rules = append(rules, landlockRule{path: Disks, access: readFile | writeFile | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV})
	}
	for _, fd := range files {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("stat descriptor %d: %w", fd, err)
		}
		access := uint64(readFile)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
		case unix.S_IFBLK:
			access |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
		default:
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return nil, fmt.Errorf("flags of descriptor %d: %w", fd, err)
		}
		if flags&unix.O_ACCMODE != unix.O_RDONLY {
			access |= writeFile
		}
		rules = append(rules, landlockRule{fd: fd, access: access})
	}
	return rules, nil
}

// restrict applies a Landlock ruleset to the calling thread and to the program that it executes: every handled access
// that no rule allows fails. An older kernel handles fewer accesses, or none; the rest of the jail does not depend on
// Landlock.
func (s Spec) restrict(version int, files []int) error {
	attr := s.landlockAttr(version)
	if attr == (unix.LandlockRulesetAttr{}) {
		return nil
	}
	ruleset, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)),
		unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make a ruleset: %w", errno)
	}
	defer unix.Close(int(ruleset))
	if attr.Handled_access_fs != 0 {
		rules, err := s.landlockRules(files)
		if err != nil {
			return err
		}
		for _, r := range rules {
			r.access &= attr.Handled_access_fs
			if err := r.add(ruleset); err != nil {
				return err
			}
		}
	}
	return raw(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0)
}

func (r landlockRule) add(ruleset uintptr) error {
	name := r.path
	if name == "" {
		name = fmt.Sprintf("descriptor %d", r.fd)
	} else {
		fd, err := unix.Open(r.path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		defer unix.Close(fd)
		r.fd = fd
	}
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		r.access &= onFile
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: r.access, Parent_fd: int32(r.fd)} //nolint:gosec // a descriptor
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, ruleset, unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 && !errors.Is(errno, unix.EBADFD) { // a memfd has no place, and needs no rule
		return fmt.Errorf("allow %s: %w", name, errno)
	}
	return nil
}

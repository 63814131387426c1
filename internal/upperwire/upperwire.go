// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package upperwire is the form in which a guest sends the upper directory of a container's overlay to the host.
//
// A stream is a line with the version, then records. A record begins with its kind, one byte, and has the fields of its
// kind; numbers are varints, and texts have their length before them. The first record is the upper directory itself. A
// directory's record is followed by those of its entries and by LeaveDir. So an entry has a name and never a path: a
// stream cannot name anything outside the directory. The data of a file are extents, and the holes between them are not
// sent. The last record is End, or Failed with the sender's reason.
//
// The Reader takes streams of hostile senders. It bounds every text before it allocates, and refuses what a directory
// cannot have (a name with a slash, a mode with a file type, an owner that chown takes for "as it is"), attributes that
// are not in the list of Attribute, and more entries or bytes than the Limits.
package upperwire

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Version begins a stream.
const Version = "coco-upper 1\n"

// Kind is the kind of a record.
type Kind byte

// The kinds of records.
const (
	Dir      Kind = 'd' // a directory; its entries follow, then LeaveDir
	LeaveDir Kind = 'u'
	File     Kind = 'f' // a regular file
	Link     Kind = 'l' // another name of an earlier file
	Symlink  Kind = 's'
	Fifo     Kind = 'p'
	Whiteout Kind = 'w' // hides the entry of that name of the layers below
	Skipped  Kind = 'k' // a name that the stream leaves out: a socket, a device
	Kept     Kind = '=' // a name whose file is as the stream before had it
	Failed   Kind = 'x' // the sender gives up
	End      Kind = 'e'
)

// Entry is a record. Which fields are set depends on its kind.
type Entry struct {
	Kind Kind
	Name string // one component, at most 255 bytes; "" for the upper directory itself
	Meta
	Opaque bool   // Dir: the directories of that name in the layers below are hidden
	ID     uint64 // File: not 0, when Links follow; Link: the file's
	Size   uint64 // File: in bytes
	Text   string // Symlink: the target; Skipped: what it is; Failed: the reason
}

// Meta has the attributes of directories, files, symbolic links and FIFOs.
type Meta struct {
	Mode     uint32 // permissions with setuid, setgid and sticky bit: at most 07777
	UID, GID uint32
	Sec      int64 // time of the last change
	Nsec     uint32
	Xattrs   []Xattr
}

// Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// Bounds of fields, which are Linux's own, and of an entry's attributes.
const (
	maxName    = unix.NAME_MAX
	maxTarget  = unix.PathMax - 1
	maxText    = 1024
	maxValue   = 64 << 10
	maxXattrs  = 128
	maxXattrsB = 256 << 10 // bytes of all attributes of an entry
	maxMode    = 0o7777
)

// Attribute reports whether an extended attribute belongs to a file wherever it is. All others are the kernel's or a
// module's notes about the file system that it lies on. The marks of overlays are among those: an upper directory that
// a guest could write marks into would show files of other layers.
func Attribute(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && len(name) > len("user.") && !strings.HasPrefix(name, "user.overlay.")
}

// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"fmt"
	"slices"
	"strings"
)

type xattr struct{ name, value string }

// On-disk name prefixes. The two POSIX ACL entries are whole names.
var xattrPrefixes = []struct {
	index  byte
	prefix string
}{
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{1, "user."},
	{4, "trusted."},
	{6, "security."},
}

const xattrOpaque = "trusted.overlay.opaque"

// fate says what becomes of an extended attribute.
type fate int

const (
	drop    fate = iota
	keep         // part of the image
	opaque       // an overlay's opaque marker
	special      // changes the meaning of the file in a way that a layer cannot carry
)

// xattrFate decides which attributes belong to the image. An image defines user.*, file
// capabilities, POSIX ACLs and foreign trusted.* attributes. Labels (security.selinux, ima, evm…)
// and the private marks of overlayfs and of containerd come from the unpacking host. An overlay's marks are
// trusted.overlay.*, or, where it is mounted with userxattr, user.overlay.*; elsewhere those are an image's like
// any others: one that was built in a container without privileges and has layers in it has them.
func xattrFate(name string, userxattr bool) fate {
	for _, ns := range []string{"trusted.overlay.", "user.overlay."} {
		rest, ok := strings.CutPrefix(name, ns)
		if !ok || ns == "user.overlay." && !userxattr {
			continue
		}
		switch rest {
		case "opaque":
			return opaque
		case "redirect", "metacopy", "whiteout":
			return special
		}
		return drop
	}
	switch {
	case strings.HasPrefix(name, "user.containerd."), strings.HasPrefix(name, "user.fuseoverlayfs."):
		return drop
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "trusted."):
		return keep
	case name == "security.capability", name == "system.posix_acl_access", name == "system.posix_acl_default":
		return keep
	}
	return drop
}

// addXattr filters one attribute and, when it is kept, adds it to the node.
func (n *node) addXattr(name, value string, userxattr bool) error {
	switch xattrFate(name, userxattr) {
	case keep:
		return n.setXattr(name, value)
	case opaque:
		if value == "y" && n.isDir() {
			return n.setXattr(xattrOpaque, "y")
		}
	case special:
		return fmt.Errorf("extended attribute %s: overlay features redirect_dir, metacopy and nested whiteouts cannot be "+
			"part of a layer", name)
	}
	return nil
}

func (n *node) setXattr(name, value string) error {
	if _, suffix := splitXattr(name); len(suffix) > maxName {
		return fmt.Errorf("extended attribute name of %d bytes is longer than %d", len(suffix), maxName)
	}
	if len(value) > 0xffff {
		return fmt.Errorf("extended attribute %s of %d bytes is longer than 65535", name, len(value))
	}
	i, found := slices.BinarySearchFunc(n.xattrs, name, func(x xattr, s string) int { return strings.Compare(x.name, s) })
	if found {
		n.xattrs[i].value = value
	} else {
		n.xattrs = slices.Insert(n.xattrs, i, xattr{name, value})
	}
	if xattrArea(n.xattrs) > maxXattrArea {
		return fmt.Errorf("extended attributes are larger than %d bytes together", maxXattrArea)
	}
	return nil
}

func splitXattr(name string) (index byte, suffix string) {
	for _, p := range xattrPrefixes {
		if s, ok := strings.CutPrefix(name, p.prefix); ok {
			return p.index, s
		}
	}
	return 0, name
}

// xattrArea is the size of the attributes on disk: a multiple of four, zero when there are none.
func xattrArea(xs []xattr) int {
	if len(xs) == 0 {
		return 0
	}
	size := xattrHeaderSize
	for _, x := range xs {
		_, suffix := splitXattr(x.name)
		size += alignInt(xattrEntrySize+len(suffix)+len(x.value), 4)
	}
	return size
}

// xattrCount is the inode's i_xattr_icount.
func xattrCount(xs []xattr) uint16 {
	if len(xs) == 0 {
		return 0
	}
	return uint16((xattrArea(xs)-xattrHeaderSize)/4 + 1) //nolint:gosec // maxXattrArea bounds it
}

func appendXattrs(b []byte, xs []xattr) []byte {
	if len(xs) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeaderSize)...)
	for _, x := range xs {
		index, suffix := splitXattr(x.name)
		start := len(b)
		b = append(b, byte(len(suffix)), index)      //nolint:gosec // at most maxName
		b = le.AppendUint16(b, uint16(len(x.value))) //nolint:gosec // checked when it was added
		b = append(append(b, suffix...), x.value...)
		b = append(b, make([]byte, alignInt(len(b)-start, 4)-(len(b)-start))...)
	}
	return b
}

func alignInt(n, to int) int { return (n + to - 1) / to * to }

// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

// Docker puts a layer between an image and each container: empty files and directories to mount on (Docker 26,
// daemon/initlayer). They have the times of the container's creation, so the layer of each container would have a root
// hash of its own, and no policy could list it. Package erofs writes the same tree for all of them: the files of
// dockerTree with the time 0. Directories below /dev, /proc and /sys are left out: Docker makes only those that the
// image does not have, and the guest's OCI runtime makes them as well.

// dockerEtc are the files in /etc of such a layer.
var dockerEtc = []string{"hostname", "hosts", "mtab", "resolv.conf"}

// dockerTree is what becomes of such a layer.
func dockerTree() *node {
	root := &node{mode: sIFDIR | 0o755}
	etc := &node{parent: root, name: "etc", mode: sIFDIR | 0o755}
	for _, name := range dockerEtc {
		n := &node{parent: etc, name: name, mode: sIFREG | 0o755}
		if name == "mtab" {
			n.mode, n.target, n.size = sIFLNK|0o777, "/proc/mounts", uint64(len("/proc/mounts"))
		}
		etc.kids = append(etc.kids, entry{name, n})
	}
	env := &node{parent: root, name: ".dockerenv", mode: sIFREG | 0o755}
	root.kids = []entry{{env.name, env}, {etc.name, etc}}
	return root
}

// asDocker returns the tree of Docker's layer if root is such a layer of some container, else root. Each name, kind,
// mode, owner, size and link target has to be Docker's. Of directories that the image may have as well only the names
// and kinds are compared, since overlayfs copies the image's attributes.
func asDocker(root *node) *node {
	want := dockerTree()
	if len(root.kids) > len(want.kids)+3 || !sameNode(root, want) {
		return root
	}
	found := 0
	for _, e := range root.kids {
		switch e.name {
		case "dev":
			if !onlyMountPoints(e.node, "console", "pts", "shm") {
				return root
			}
		case "proc", "sys":
			if !onlyMountPoints(e.node) {
				return root
			}
		default:
			if !isOneOf(e, want.kids) {
				return root
			}
			found++
		}
	}
	if found != len(want.kids) {
		return root
	}
	return want
}

// isOneOf compares an entry with the one of that name, and a directory's entries likewise.
func isOneOf(e entry, list []entry) bool {
	for _, w := range list {
		if w.name != e.name {
			continue
		}
		if !sameNode(e.node, w.node) || len(e.node.kids) != len(w.node.kids) {
			return false
		}
		for _, k := range e.node.kids {
			if !isOneOf(k, w.node.kids) {
				return false
			}
		}
		return true
	}
	return false
}

// sameNode compares all but times and entries. A directory may be opaque: overlayfs marks those that it makes.
func sameNode(n, want *node) bool {
	plain := len(n.xattrs) == 0 || n.isDir() && len(n.xattrs) == 1 && n.xattrs[0].name == xattrOpaque
	return plain && n.mode == want.mode && n.uid == want.uid && n.gid == want.gid && n.target == want.target &&
		(n.isDir() || n.size == want.size)
}

// onlyMountPoints says whether a directory holds nothing but empty directories and empty files of these names.
func onlyMountPoints(dir *node, names ...string) bool {
	if !dir.isDir() || len(dir.kids) > len(names) {
		return false
	}
	for _, e := range dir.kids {
		known := false
		for _, name := range names {
			known = known || name == e.name
		}
		empty := e.node.isDir() && len(e.node.kids) == 0 || e.node.isReg() && e.node.size == 0
		if !known || !empty {
			return false
		}
	}
	return true
}

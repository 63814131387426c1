// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package jail confines the process that becomes a VMM, so that a guest that breaks out of its VM finds
// nothing of the host.
//
// The life of such a process: it is born in mount, pid, ipc and uts namespaces of its own (Namespaces) and
// calls Enter, which changes its root to an empty tmpfs. Before it executes the VMM, Furnish puts the files that a
// program needs to start into that root, read-only: libraries, the VMM's own directory, its device nodes.
// Drop then gives up everything else: the uid becomes one that no other process has, the capability sets
// become empty, Landlock forbids all that it can forbid, and no later exec can bring any of that back. Once the
// VMM runs, its parent calls Empty, which removes the files that were needed only to start. Place mounts one
// file for a VMM that cannot be given a descriptor of it. A VMM that opens files by name gets them from a Lender,
// which makes root's files accessible to the VMM's user.
//
// The parent prepares a Plan and calls Empty and Place. The process itself calls Enter, Furnish and Drop, which use
// bare system calls, as package launch does. It must stay on one thread from Drop to exec.
package jail

import "golang.org/x/sys/unix"

// Namespaces are those that the process is born into.
const Namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Spec tells the process what to do. It is sent as JSON, and files travel beside it: a detached mount for
// each of Trees, then the loader if there is one.
type Spec struct {
	User      uint32   `json:"user"`              // uid and gid
	Processes uint64   `json:"processes"`         // limit of processes and threads, RLIMIT_NPROC
	Keep      []int    `json:"keep,omitempty"`    // capabilities that a program run by root keeps
	Trees     []string `json:"trees,omitempty"`   // where the mounts go
	Kept      []string `json:"kept,omitempty"`    // those of Trees that stay, and may be written to
	Disks     bool     `json:"disks,omitempty"`   // there is a directory Disks
	Links     []Link   `json:"links,omitempty"`   // symbolic links
	Devices   []Device `json:"devices,omitempty"` // nodes in /dev
	// Loader is the path of the program that loads the VMM, ld.so, when there is one. The process gets a
	// copy that it may execute but not read: such a process is not dumpable (see Furnish).
	Loader string `json:"loader,omitempty"`
}

// Link is a symbolic link.
type Link struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

// Device is a character device that the process may open.
type Device struct {
	Path   string `json:"path"`
	Number uint64 `json:"number"`
}

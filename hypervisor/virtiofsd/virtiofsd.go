// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package virtiofsd runs the process that shares files of the host with one VM while it runs (virtio-fs).
//
// The process is confined to an empty directory, which is the root of a mount namespace of its own and
// read-only there. A file or directory to share is mounted into that namespace on request, from a
// detached copy of the mount (open_tree(2)) that exists nowhere else. So nothing is ever mounted on the
// host: the namespace ends with the process, which is all there is to undo, and removing the directory
// cannot reach a shared file.
//
// Two programs are known: that of QEMU up to version 7 (C), and its successor (Rust). The caller forks the process
// with package launch and ends it. It also ends by itself when the VMM closes its end of the socket.
package virtiofsd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// places are where distributions have the program: Debian 13, Ubuntu 24.04 and Fedora; Debian 12 and
// Ubuntu 22.04; Arch Linux.
var places = []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"}

// Capabilities are those that the programs need as root: some to make their own sandbox, and some, the only ones that
// they keep, to access files of any owner for the users of the guest.
var Capabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_MKNOD, unix.CAP_SETFCAP,
	unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP,
}

// askTimeout bounds a program's answer to --version.
const askTimeout = 10 * time.Second

// Daemon is a program that was found.
type Daemon struct {
	Path    string
	Version string // its first line
	legacy  bool   // QEMU's own, with options of another form
}

// Find looks for the program, or at the one that path names, and asks it what it is.
func Find(ctx context.Context, path string) (Daemon, error) {
	return find(ctx, path, places)
}

func find(ctx context.Context, path string, places []string) (Daemon, error) {
	if path != "" {
		places = []string{path}
	}
	for _, p := range places {
		if st, err := os.Stat(p); err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
			continue
		}
		return ask(ctx, p)
	}
	return Daemon{}, fmt.Errorf("there is no virtiofsd, which files that are shared live need: no program %s; install "+
		"the package virtiofsd (Debian 12: qemu-system-common), set runtime.virtiofsd, or share nothing live "+
		"(runtime.binds, runtime.host_path = \"read-only\"): %w",
		strings.Join(places, ", "), errdefs.ErrFailedPrecondition)
}

func ask(ctx context.Context, path string) (Daemon, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, errors.New("no answer within "+askTimeout.String()))
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Daemon{}, fmt.Errorf("%s --version: %w", path, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	d := Daemon{Path: path, Version: line}
	switch {
	case strings.HasPrefix(line, "virtiofsd version "):
		d.legacy = true
	case !strings.HasPrefix(line, "virtiofsd "):
		return Daemon{}, fmt.Errorf("%s is no virtiofsd: it says %.80q for --version: %w", path, line,
			errdefs.ErrFailedPrecondition)
	}
	return d, nil
}

// argv is the command line that serves dir to whom connects to descriptor fd. Submounts are announced,
// so that files of two file systems are not taken for one.
func (d Daemon) argv(fd int, dir string) []string {
	if d.legacy {
		return []string{
			d.Path, "-f", fmt.Sprintf("--fd=%d", fd), "-o", "source=" + strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(dir),
			"-o", "sandbox=namespace,announce_submounts,log_level=warn",
		}
	}
	return []string{
		d.Path, fmt.Sprintf("--fd=%d", fd), "--shared-dir=" + dir, "--sandbox=namespace",
		"--announce-submounts", "--log-level=error",
	}
}

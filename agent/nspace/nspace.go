// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nspace makes the namespaces that the containers of a pod share and keeps them alive by
// bind mounts, so that containers join them by path. A shared pid namespace needs a process that is
// its init for as long as the pod lives: the agent's binary, run again under the name "pause".
package nspace

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/reap"
)

// PauseName is argv[0] under which the binary is to call Pause.
const PauseName = "pause"

// Maker makes namespaces below a directory.
type Maker struct {
	Dir    string
	Reaper *reap.Reaper
}

// Make makes an IPC and a UTS namespace with the given host name and sysctls, by their paths below
// /proc/sys. It returns the namespaces' paths by type. On an error it releases the namespaces that it
// has made.
func (m *Maker) Make(hostname string, sysctls map[string]string) (_ map[string]string, err error) {
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return nil, err
	}
	paths := map[string]string{"ipc": filepath.Join(m.Dir, "ipc"), "uts": filepath.Join(m.Dir, "uts")}
	defer func() {
		if err != nil {
			for _, p := range paths {
				_ = unix.Unmount(p, unix.MNT_DETACH) // most were not mounted
			}
		}
	}()
	done := make(chan error, 1)
	go func() {
		// The thread has namespaces of its own afterwards, so it must not run other goroutines:
		// without an unlock it ends with this one.
		runtime.LockOSThread()
		done <- makeHere(hostname, sysctls, paths)
	}()
	if err := <-done; err != nil {
		return nil, err
	}
	return paths, nil
}

// SharedPIDs makes a pid namespace with an init of its own and returns its path.
func (m *Maker) SharedPIDs() (string, error) {
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return "", err
	}
	p := filepath.Join(m.Dir, "pid")
	return p, m.pause(p)
}

func makeHere(hostname string, sysctls, paths map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make namespaces of the sandbox: %w", err)
	}
	if hostname != "" {
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", hostname, err)
		}
	}
	// The kernel shows each thread the values of the thread's own namespaces.
	for p, v := range sysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys", p), []byte(v), 0); err != nil {
			return fmt.Errorf("sysctl %s: %w", p, err)
		}
	}
	for t, p := range paths {
		if err := pin(fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), t), p); err != nil {
			return err
		}
	}
	return nil
}

// pin binds a namespace to a file.
func pin(ns, file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.Mount(ns, file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("keep namespace %s: %w", ns, err)
	}
	return nil
}

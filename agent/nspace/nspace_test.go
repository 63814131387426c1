// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nspace

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
	"golang.org/x/sys/unix"
)

func TestMake(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns) // a root that may make namespaces
	m := &Maker{Dir: filepath.Join(t.TempDir(), "ns")}
	paths, err := m.Make("pod-name", map[string]string{"kernel/shmmni": "1234"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range paths {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	if len(paths) != 2 {
		t.Errorf("namespaces %v, want ipc and uts", paths)
	}
	for kind, p := range paths {
		var made, own unix.Stat_t
		if err := unix.Stat(p, &made); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat("/proc/self/ns/"+kind, &own); err != nil {
			t.Fatal(err)
		}
		if made.Ino == own.Ino {
			t.Errorf("%s: it is our own", kind)
		}
	}
	name := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		f, err := os.Open(paths["uts"])
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWUTS)
		}
		var u unix.Utsname
		if err == nil {
			err = unix.Uname(&u)
		}
		if err != nil {
			t.Error(err)
		}
		name <- unix.ByteSliceToString(u.Nodename[:])
	}()
	if got := <-name; got != "pod-name" {
		t.Errorf("host name %q in the namespace", got)
	}
	if own, err := os.Hostname(); err != nil || own == "pod-name" {
		t.Errorf("our own host name is %q, %v", own, err)
	}
}

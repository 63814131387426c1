// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
)

// watched is a place whose directory is watched.
func watched(t *testing.T, bring func() error) (place, *Watch) {
	t.Helper()
	testvm.Need(t, testvm.Root)
	p := newPlace(t)
	if err := os.WriteFile(filepath.Join(p.dir, "engine/lower"), []byte("l/A"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := p.Watch()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- w.Serve(bring, func() {}) }()
	t.Cleanup(func() {
		if err := w.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return p, w
}

func (p place) upper() string { return filepath.Join(p.dir, "engine/fs") }

func TestWhoOpensTheFilesSeesThemAsTheyAreThen(t *testing.T) {
	var p place
	calls := 0
	p, _ = watched(t, func() error {
		calls++
		return os.WriteFile(filepath.Join(p.upper(), "now"), []byte("x"), 0o600) // opens as this process
	})
	d, err := os.Open(p.upper()) // this process is never held
	if err != nil || calls != 0 {
		t.Fatalf("open: %v, %d calls", err, calls)
	}
	defer d.Close()
	if out, err := exec.Command("ls", p.upper()).CombinedOutput(); err != nil || !strings.Contains(string(out), "now") {
		t.Errorf("ls = %q, %v", out, err)
	}
	if out, err := exec.Command("cat", filepath.Join(p.dir, "engine/lower")).CombinedOutput(); err != nil || calls != 2 {
		t.Errorf("cat lower = %q, %v, %d calls", out, err, calls)
	}
}

// Who opens the root of an overlay opens its upper directory, also where another mount namespace has the overlay.
func TestWhoOpensAnOverlayOfTheFilesWaits(t *testing.T) {
	var p place
	p, _ = watched(t, func() error {
		return os.WriteFile(filepath.Join(p.upper(), "now"), []byte("x"), 0o600)
	})
	out, err := exec.Command("unshare", "-m", "sh", "-ec", "cd "+p.dir+"; mkdir work merged; "+
		"mount -t overlay o -o lowerdir=lower,upperdir=engine/fs,workdir=work merged; ls merged").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "now") {
		t.Errorf("ls of the overlay = %q, %v", out, err)
	}
}

func TestWhoOpensFilesThatCannotBeBroughtIsRefused(t *testing.T) {
	p, _ := watched(t, func() error { return errors.New("no answer") })
	out, err := exec.Command("ls", p.upper()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not permitted") {
		t.Errorf("ls = %q, %v", out, err)
	}
	// An engine reads this one to describe the container, and must be able to.
	if out, err := exec.Command("cat", filepath.Join(p.dir, "engine/lower")).CombinedOutput(); err != nil {
		t.Errorf("cat lower = %q, %v", out, err)
	}
}

func TestTheEndOfAWatchLetsEverybodyThrough(t *testing.T) {
	asked, never := make(chan struct{}), make(chan struct{})
	p, w := watched(t, func() error { close(asked); <-never; return nil })
	held := exec.Command("ls", p.upper())
	if err := held.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	defer close(never)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := held.Wait(); err != nil {
		t.Errorf("ls: %v", err)
	}
}

// Files that are closed on the host's own file system are nobody's business: only a mounted overlay is marked.
func TestOnlyAMountedOverlayIsMarked(t *testing.T) {
	testvm.Need(t, testvm.Root)
	p := newPlace(t)
	run := func(line string) {
		t.Helper()
		if out, err := exec.Command("sh", "-ec", "cd "+p.dir+"; "+line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	run("mkdir work merged overlay")
	run("mount -t overlay o -o lowerdir=lower,upperdir=engine/fs,workdir=work overlay")
	t.Cleanup(func() { run("umount overlay") })
	run("mkdir overlay/sub; ln -s overlay link")
	for name, c := range map[string]struct {
		merged string
		writes string
		told   bool
	}{
		"an overlay":                        {"overlay", "overlay/sub/f", true},
		"one that was unmounted":            {"merged", "merged/f", false},
		"a directory of the host's":         {"overlay/sub", "overlay/sub/f", false},
		"a directory that has been removed": {"removed", "host/f", false},
	} {
		t.Run(name, func(t *testing.T) {
			l := New(Dirs{Upper: filepath.Join(p.dir, "host"), Merged: filepath.Join(p.dir, c.merged)})
			w, err := l.Watch()
			if err != nil {
				t.Fatal(err)
			}
			told := false
			served := make(chan error, 1)
			go func() { served <- w.Serve(func() error { return nil }, func() { told = true }) }()
			run("echo x >" + c.writes + "; ls host") // the event of ls comes after that of the write
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil || told != c.told {
				t.Errorf("told = %v, want %v; %v", told, c.told, err)
			}
		})
	}
	if _, err := New(Dirs{Upper: p.upper(), Merged: filepath.Join(p.dir, "link")}).Watch(); err == nil {
		t.Error("a link was followed to the overlay")
	}
}

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

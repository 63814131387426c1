// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/testvm"
)

// frozen is a place on a file system of its own, and a way to freeze it: then the kernel holds everybody who writes.
func frozen(t *testing.T) (p place, freeze, thaw func()) {
	t.Helper()
	testvm.Need(t, testvm.Root)
	for program, pkg := range map[string]string{"fsfreeze": "util-linux", "mkfs.ext4": "e2fsprogs"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s (package %s)", program, pkg)
		}
	}
	p = newPlace(t)
	at := filepath.Join(p.dir, "disk")
	run := func(line string) {
		t.Helper()
		if out, err := exec.Command("sh", "-ec", "cd "+p.dir+"; "+line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	run("truncate -s 8M image; mkfs.ext4 -q image; mkdir disk")
	if out, err := exec.Command("mount", "-o", "loop", filepath.Join(p.dir, "image"), at).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %s", out)
	}
	t.Cleanup(func() { run("umount disk") })
	run("mkdir -p disk/engine/fs")
	is := false
	thaw = func() {
		if is {
			run("fsfreeze -u disk")
		}
		is = false
	}
	t.Cleanup(thaw)
	p.Layer = New(Dirs{Upper: filepath.Join(at, "engine/fs")})
	p.grace = 100 * time.Millisecond
	return p, func() { run("fsfreeze -f disk"); is = true }, thaw
}

func TestAMergeThatTheKernelHoldsIsGivenUp(t *testing.T) {
	p, freeze, thaw := frozen(t)
	in := stream(t, dir(""), file("f"), leave)
	returned := make(chan error, 1)
	said := make(chan error, 2)
	w, err := p.Watch()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- w.Serve(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := p.Do(ctx, func() error {
				_, err := p.Bring(bytes.NewReader(in), small)
				returned <- err
				return err
			})
			said <- err
			return err
		}, func() {})
	}()
	freeze()
	// A reader of the files is let go, by an error. The next one does not wait for the same.
	for _, want := range []string{"within 100ms after its time was over", "earlier work there has not ended"} {
		out, err := exec.Command("ls", p.dirs.Upper).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "not permitted") {
			t.Errorf("ls = %q, %v", out, err)
		}
		err = <-said
		if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), p.dirs.Upper) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("Do() = %v, want %q", err, want)
		}
	}
	thaw()
	if err := <-returned; err != nil { // it has gone on
		t.Errorf("Bring() in the background = %v", err)
	}
	if err := errors.Join(w.Close(), <-served); err != nil {
		t.Error(err)
	}
	p.turn <- struct{}{} // its turn has ended
	<-p.turn
	if err := p.Do(t.Context(), func() error { return nil }); err != nil {
		t.Errorf("Do() when it has ended = %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dirs.Upper, "f")); err != nil {
		t.Error(err)
	}
}

func TestWorkThatEndsInItsGraceIsNotGivenUp(t *testing.T) {
	p := newPlace(t)
	ctx, cancel := context.WithCancel(t.Context())
	broken := errors.New("broken")
	err := p.Do(ctx, func() error { cancel(); <-ctx.Done(); return broken })
	if !errors.Is(err, broken) {
		t.Errorf("Do() = %v", err)
	}
	// Whose time is over before its turn does nothing.
	free, has := make(chan struct{}), make(chan struct{})
	go func() { _ = p.Do(t.Context(), func() error { close(has); <-free; return nil }) }()
	<-has
	if err := p.Do(ctx, func() error { t.Error("worked"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Do() = %v", err)
	}
	close(free)
	if err := p.Do(t.Context(), func() error { return nil }); err != nil {
		t.Errorf("Do() = %v", err)
	}
}

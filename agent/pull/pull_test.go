// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/cotrust"
	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/trust/wire"
)

// helperMode, set in its environment, makes the test's own program a coco-trust that behaves as its value says.
const helperMode = "COCO_TEST_PULL"

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperMode); mode != "" {
		help(mode)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	source = "r.example/app@sha256:0"
	hash   = "1111111111111111111111111111111111111111111111111111111111111111"
)

// help answers like a coco-trust that pulls.
func help(mode string) {
	conn := os.NewFile(wire.Socket, "agent")
	var s wire.Setup
	if err := wire.Read(conn, &s); err != nil || s.Initdata != "document" || s.Pull == nil || s.Pull.Source != source {
		os.Exit(3)
	}
	say := func(a wire.PullAnswer) {
		if err := wire.Write(conn, a); err != nil {
			os.Exit(4)
		}
	}
	say(wire.PullAnswer{Progress: "layer 3/7, 45 %, fetch"})
	l := wire.Layer{File: "0.layer", RootHash: hash, DataBlocks: 1, HashOffset: 4096}
	path := filepath.Join(s.Pull.Dir, l.File)
	_ = os.WriteFile(path, make([]byte, 4096), 0o600) // its absence is what the test would see
	switch mode {
	case "slow":
		for { // until the test says that it has seen enough
			if _, err := os.Stat(filepath.Join(filepath.Dir(s.Pull.Dir), "go")); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	case "key":
		say(wire.PullAnswer{Need: "kbs:///a/b/c"})
		var a wire.Answer
		if err := wire.Read(conn, &a); err != nil || string(a.Secret) != "key of kbs:///a/b/c" {
			say(wire.PullAnswer{Error: &wire.Failure{Code: wire.Image, Text: "got another key"}})
		}
	case "refuses":
		say(wire.PullAnswer{Error: &wire.Failure{Code: wire.Image, Text: "no such image"}})
	case "dies":
		os.Exit(1)
	case "other":
		l.RootHash = strings.Repeat("2", 64)
	case "link":
		_ = os.Remove(path)
		_ = os.Symlink("/etc/passwd", path)
	case "up":
		l.File = "../../../../etc/passwd"
	case "short":
		l.DataBlocks, l.HashOffset = 2, 8192
	case "nonsense":
		l.DataBlocks = 1 << 62
	case "two":
		say(wire.PullAnswer{Layers: []wire.Layer{l, l}})
	}
	say(wire.PullAnswer{Layers: []wire.Layer{l}})
}

var reaper = sync.OnceValue(reap.New)

func puller(t *testing.T, mode string) (p *Puller, started *int) {
	t.Helper()
	part, started := t.TempDir(), new(int)
	me, err := os.Executable()
	if err == nil {
		err = os.Symlink(me, filepath.Join(part, cotrust.Name))
	}
	if err != nil {
		t.Fatal(err)
	}
	p = New(Config{
		Initdata: "document", Dir: filepath.Join(t.TempDir(), "images"),
		Want:     func(s string) ([]string, bool) { return []string{hash}, s == source },
		Resource: func(_ context.Context, uri string) ([]byte, error) { return []byte("key of " + uri), nil },
		Program: cotrust.Config{
			Open: func(context.Context, string) (string, error) { return part, nil },
			Spawn: func(path string, argv []string, attr *syscall.ProcAttr) (*reap.Child, error) {
				*started++
				if c := attr.Sys.Credential; c == nil || c.Uid != cotrust.User || len(attr.Sys.AmbientCaps) > 0 {
					t.Errorf("coco-trust would have rights: %+v", attr.Sys)
				}
				attr.Sys, attr.Env = nil, []string{helperMode + "=" + mode}
				return reaper().Spawn(path, argv, attr)
			},
		},
	})
	p.mount = func(string) error { return nil }
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, started
}

func TestImagesOfThePolicy(t *testing.T) {
	for _, mode := range []string{"good", "key"} {
		p, _ := puller(t, mode)
		got, err := p.Image(t.Context(), source)
		if err != nil || len(got) != 1 || got[0].Hex() != hash || string(got[0].Salt) != string(verity.Salt) {
			t.Fatalf("%s: Image() = %v, %v", mode, got, err)
		}
		if err := closeAll(got); err != nil {
			t.Error(err)
		}
		if left, err := filepath.Glob(p.cfg.Dir + "/*"); err != nil || len(left) > 0 {
			t.Errorf("%s: left are %v, %v", mode, left, err)
		}
	}
}

func TestWhatCocoTrustGetsWrong(t *testing.T) {
	for mode, want := range map[string]string{
		"refuses": "image " + source + ": (layer 3/7, 45 %, fetch) [image] no such image",
		"dies":    "coco-trust has ended", "other": "layer 1 of 1 from the top has root hash \"2222",
		"link": "0.layer", "up": "passwd", "short": "has 4096 bytes", "nonsense": "data blocks",
		"two": "the image has 2 layers, and the policy has 1",
	} {
		p, _ := puller(t, mode)
		if got, err := p.Image(t.Context(), source); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: Image() = %v, %v, want %q", mode, got, err, want)
		}
	}
	p, started := puller(t, "good")
	if got, err := p.Image(t.Context(), "r.example/other@sha256:0"); !errdefs.IsPermissionDenied(err) || *started > 0 {
		t.Errorf("an image that the policy has not: %v, %v", got, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Image(t.Context(), source); !errdefs.IsUnavailable(err) {
		t.Errorf("after the end: %v", err)
	}
}

// TestARepeatedRequestJoinsThePull: a request that is given up tells how far the pull is, and does not end it.
func TestARepeatedRequestJoinsThePull(t *testing.T) {
	p, started := puller(t, "slow")
	cause := errors.New("not done in time")
	for {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, cause)
		_, err := p.Image(ctx, source)
		cancel()
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), "joins it") {
			t.Fatalf("Image() = %v", err)
		}
		if strings.Contains(err.Error(), "(layer 3/7, 45 %, fetch)") {
			break
		}
	}
	if err := os.WriteFile(filepath.Join(p.cfg.Dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := p.Image(t.Context(), source)
	if err != nil || len(got) != 1 || *started != 1 {
		t.Errorf("Image() = %v, %v after %d starts", got, err, *started)
	}
	if err := closeAll(got); err != nil {
		t.Error(err)
	}
}

// A pull that nobody waits for any more ends with the guest, and so does what it has made.
func TestTheGuestsEndEndsPulls(t *testing.T) {
	p, _ := puller(t, "slow")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.Image(ctx, source); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Image() = %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

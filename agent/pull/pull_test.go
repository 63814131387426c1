// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/cotrust"
	"github.com/coco-shim/coco/agent/layer"
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
	case "key", "slow":
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
	case "greedy":
		say(wire.PullAnswer{Need: "kbs:///a/b/other"})
		var a wire.Answer
		if err := wire.Read(conn, &a); err == nil {
			say(wire.PullAnswer{Error: &wire.Failure{Code: wire.Image, Text: "got another's secret"}})
		}
	case "nohash":
		l.RootHash = "../x"
	case "many":
		say(wire.PullAnswer{Layers: slices.Repeat([]wire.Layer{l}, 401)})
	case "two":
		say(wire.PullAnswer{Layers: []wire.Layer{l, l}})
	}
	say(wire.PullAnswer{Layers: []wire.Layer{l}})
}

var reaper = sync.OnceValue(reap.New)

// forSigned changes what the policy says of the image: its key decides, and no list of layers.
func forSigned(p *Puller) *Puller {
	want := p.cfg.Want
	p.cfg.Want = func(s string) (Image, bool) {
		img, ok := want(s)
		img.Layers, img.Signed = []string{"of the image that the policy was written for"}, true
		return img, ok
	}
	return p
}

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
		Want: func(s string) (Image, bool) {
			return Image{Layers: []string{hash}, Keys: []string{"kbs:///a/b/c"}}, s == source
		},
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

// image fetches an image and takes it.
func image(ctx context.Context, p *Puller, source string) ([]layer.Pulled, error) {
	if err := p.Fetch(ctx, source); err != nil {
		return nil, err
	}
	return p.Take(source)
}

func TestImagesOfThePolicy(t *testing.T) {
	for _, mode := range []string{"good", "key"} {
		p, _ := puller(t, mode)
		got, err := image(t.Context(), p, source)
		if err != nil || len(got) != 1 || got[0].Hex() != hash || string(got[0].Salt) != string(verity.Salt) {
			t.Fatalf("%s: image() = %v, %v", mode, got, err)
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
		"greedy": "coco-trust asks for \"kbs:///a/b/other\", which is neither a key of the image",
		"two":    "the image has 2 layers, and the policy has 1",
	} {
		p, _ := puller(t, mode)
		if got, err := image(t.Context(), p, source); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: image() = %v, %v, want %q", mode, got, err, want)
		}
	}
	p, started := puller(t, "good")
	if got, err := image(t.Context(), p, "r.example/other@sha256:0"); !errdefs.IsPermissionDenied(err) || *started > 0 {
		t.Errorf("an image that the policy has not: %v, %v", got, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := image(t.Context(), p, source); !errdefs.IsUnavailable(err) {
		t.Errorf("after the end: %v", err)
	}
}

// slow is a puller whose pull waits for a key until the test closes answer. It says so by asked.
func slow(t *testing.T) (p *Puller, started *int, asked, answer chan struct{}) {
	t.Helper()
	p, started = puller(t, "slow")
	asked, answer = make(chan struct{}, 10), make(chan struct{})
	p.cfg.Resource = func(ctx context.Context, uri string) ([]byte, error) {
		asked <- struct{}{}
		select {
		case <-answer:
			return []byte("key of " + uri), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return p, started, asked, answer
}

// fetchUntil fetches until the test ends it with a cause.
func fetchUntil(t *testing.T, p *Puller) (end context.CancelCauseFunc, result chan error) {
	ctx, end := context.WithCancelCause(t.Context())
	result = make(chan error, 1)
	go func() { result <- p.Fetch(ctx, source) }()
	return end, result
}

// TestARepeatedRequestJoinsThePull: a request that is given up tells how far the pull is, and does not end it.
func TestARepeatedRequestJoinsThePull(t *testing.T) {
	p, started, asked, answer := slow(t)
	end, result := fetchUntil(t, p)
	<-asked
	cause := errors.New("not done in time")
	end(cause)
	if err := <-result; !errors.Is(err, cause) || !strings.Contains(err.Error(), "(layer 3/7, 45 %, fetch)") ||
		!strings.Contains(err.Error(), "joins it") {
		t.Fatalf("Fetch() = %v", err)
	}
	if _, err := p.Take(source); !errdefs.IsUnavailable(err) {
		t.Errorf("Take() before the end = %v", err)
	}
	close(answer)
	got, err := image(t.Context(), p, source)
	if err != nil || len(got) != 1 || *started != 1 {
		t.Errorf("image() = %v, %v after %d starts", got, err, *started)
	}
	if err := closeAll(got); err != nil {
		t.Error(err)
	}
	if _, err := p.Take(source); !errdefs.IsUnavailable(err) {
		t.Errorf("Take() again = %v", err)
	}
}

// A removed container's pull ends, with all that it has made, but not while another container waits for the image.
func TestAPullThatIsGivenUp(t *testing.T) {
	p, started, asked, answer := slow(t)
	end, result := fetchUntil(t, p)
	<-asked
	end(errdefs.ErrAborted)
	if err := <-result; !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "is not pulled any more") {
		t.Fatalf("Fetch() = %v", err)
	}
	if left, err := filepath.Glob(p.cfg.Dir + "/*"); err != nil || len(left) > 0 || len(p.jobs) > 0 {
		t.Errorf("left are %v, %v, %v", left, p.jobs, err)
	}

	end, result = fetchUntil(t, p)
	<-asked
	j, err := p.join(source) // as Fetch does
	if err != nil {
		t.Fatal(err)
	}
	end(errdefs.ErrAborted)
	if err := <-result; !errdefs.IsAborted(err) {
		t.Errorf("Fetch() = %v", err)
	}
	close(answer)
	<-j.done
	got, err := p.Take(source)
	if err != nil || len(got) != 1 || *started != 2 {
		t.Errorf("the other container's image: %v, %v after %d starts", got, err, *started)
	}
	if err := closeAll(got); err != nil {
		t.Error(err)
	}
}

// The layers of a signed image are those that coco-trust has made, and they are opened with their root hashes.
func TestASignedImage(t *testing.T) {
	for mode, n := range map[string]int{"good": 1, "other": 1, "two": 2} {
		p, _ := puller(t, mode)
		got, err := image(t.Context(), forSigned(p), source)
		if err != nil || len(got) != n {
			t.Errorf("%s: image() = %v, %v", mode, got, err)
		}
		if err := closeAll(got); err != nil {
			t.Error(err)
		}
	}
	for mode, want := range map[string]string{
		"refuses": "[image] no such image", "nohash": "is no root hash", "many": "has 401 layers", "short": "has 4096 bytes",
	} {
		p, _ := puller(t, mode)
		if got, err := image(t.Context(), forSigned(p), source); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: image() = %v, %v, want %q", mode, got, err, want)
		}
	}
}

// A pull that nobody waits for any more ends with the guest, and so does what it has made.
func TestTheGuestsEndEndsPulls(t *testing.T) {
	p, _, asked, _ := slow(t)
	end, result := fetchUntil(t, p)
	<-asked
	end(context.DeadlineExceeded)
	if err := <-result; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Fetch() = %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

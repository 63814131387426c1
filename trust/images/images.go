// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package images is the work of a coco-trust that pulls an image for its guest. What it pulls, how it reaches the
// registry and which keys it may use stands in the pod's initdata. The agent compares the root hashes of the layers
// with the policy, and each block of them when it is read: this program is not trusted with that, except for images
// that the policy names by the key of their signer.
package images

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coco-shim/coco/image/pull"
	"github.com/coco-shim/coco/image/registry"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/config"
	"github.com/coco-shim/coco/trust/wire"
)

// Options replace what a test cannot have.
type Options struct {
	// Transport makes the way to registries; nil: one that reaches no address of this machine.
	Transport func(config.Images) http.RoundTripper
}

// Pull pulls the image of a setup and tells the agent of it.
func Pull(ctx context.Context, conn io.ReadWriter, s wire.Setup, o Options) error {
	p := &puller{conn: conn, opts: o}
	layers, err := p.pull(ctx, s)
	if p.broken != nil {
		return fmt.Errorf("talk with the agent: %w", p.broken)
	}
	a := wire.PullAnswer{Layers: layers}
	if err != nil {
		a = wire.PullAnswer{Error: failure(err)}
	}
	return wire.Write(conn, a)
}

// failure is why there is no image, as the agent passes it on.
func failure(err error) *wire.Failure {
	var f *wire.Failure
	if errors.As(err, &f) {
		return &wire.Failure{Code: f.Code, Text: strings.Replace(err.Error(), f.Error(), f.Text, 1)}
	}
	return &wire.Failure{Code: wire.Image, Text: err.Error()}
}

type puller struct {
	conn   io.ReadWriter
	opts   Options
	broken error // of the connection

	told string
	at   time.Time
}

// pull returns the layers with the topmost first.
func (p *puller) pull(ctx context.Context, s wire.Setup) ([]wire.Layer, error) {
	d, err := initdata.FromText([]byte(s.Initdata))
	if err != nil {
		return nil, err
	}
	rules, err := policy.Load([]byte(d.Data[policy.FileName]))
	if err != nil {
		return nil, err
	}
	img, ok := rules.Pulled(s.Pull.Source)
	if !ok {
		return nil, fmt.Errorf("the policy has no image %.300q", s.Pull.Source)
	}
	how, err := config.ParseImages(d.Data)
	if err != nil {
		return nil, &wire.Failure{Code: wire.Config, Text: err.Error()}
	}
	logins, err := p.logins(how)
	if err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(s.Pull.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	reach := registry.Config{Transport: p.transport(how), Login: logins.find}
	digest := img.Manifest
	if img.SignedBy != "" {
		if digest, err = signed(ctx, reach, img); err != nil {
			return nil, err
		}
	}
	made, err := pull.Image(ctx, pull.Config{
		Registry: reach, Version: newEnough(img.MinVersion),
		Keys: func(_ context.Context, kid string) ([]byte, error) { return p.key(img, kid) },
		Dir:  dir, Progress: p.progress,
	}, img.Pull, digest)
	if err != nil {
		return nil, err
	}
	var out []wire.Layer
	for _, l := range slices.Backward(made) {
		out = append(out, wire.Layer{
			File: l.Name, RootHash: hex.EncodeToString(l.RootHash[:]), DataBlocks: l.DataBlocks, HashOffset: l.HashOffset,
		})
	}
	return out, nil
}

func (p *puller) transport(how config.Images) http.RoundTripper {
	if p.opts.Transport != nil {
		return p.opts.Transport(how)
	}
	return registry.Transport{Roots: how.Roots, Proxy: how.ProxyFor}.New()
}

// key returns a key that the policy allows for an image.
func (p *puller) key(img policy.Image, kid string) ([]byte, error) {
	if !slices.Contains(img.Keys, kid) {
		return nil, errors.New("the policy does not list it among the image's keys")
	}
	return p.need(kid)
}

// need gets a resource from the agent.
func (p *puller) need(resource string) ([]byte, error) {
	var a wire.Answer
	err := p.send(wire.PullAnswer{Need: resource})
	if err == nil {
		err = wire.Read(p.conn, &a)
	}
	switch {
	case err != nil:
		p.broken = err
		return nil, err
	case a.Error != nil:
		return nil, a.Error
	case len(a.Secret) == 0:
		return nil, errors.New("the agent has answered with nothing")
	}
	return a.Secret, nil
}

func (p *puller) send(a wire.PullAnswer) error {
	err := wire.Write(p.conn, a)
	if err != nil {
		p.broken = err
	}
	return err
}

// tellEach is how often the agent learns how far a pull is.
const tellEach = 200 * time.Millisecond

func (p *puller) progress(now pull.Progress) {
	text := now.String()
	if text == p.told || p.broken != nil || time.Since(p.at) < tellEach {
		return
	}
	p.told, p.at = text, time.Now()
	_ = p.send(wire.PullAnswer{Progress: text})
}

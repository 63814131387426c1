// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pull is the agent's side of images that the guest pulls. It starts a coco-trust for each, which fetches the
// layers into a directory of the guest's memory, and takes the files that come out if they are under the root hashes of
// the policy. A layer is mounted with its root hash, so coco-trust is not trusted with its content. For an image that
// the policy names by a key it is: it checks the signature, and the root hashes are those that it has computed.
//
// A pull goes on when the request that began it ends: the next request for the image joins it, or finds it done. Pulls
// end with Close.
package pull

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/agent/cotrust"
	"github.com/coco-shim/coco/agent/layer"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/trust/wire"
)

// Config has what a Puller depends on.
type Config struct {
	Program  cotrust.Config
	Initdata string // the pod's document
	// Want returns what the policy says of an image. ok is false if the policy has not the image.
	Want func(source string) (img Image, ok bool)
	// Login is the resource of the key broker that has the logins of registries; "": initdata names none.
	Login string
	// Resource gets a resource of the pod's key broker.
	Resource func(ctx context.Context, uri string) ([]byte, error)
	// Dir is the directory for layers, to which no request of the host reaches.
	Dir string
}

// Image is what a policy says of an image.
type Image struct {
	Layers []string // root hashes, the topmost first
	// Signed says that the image is the one which coco-trust finds signed by the policy's key, and Layers is not compared.
	Signed bool
	Keys   []string // resources of the key broker that may decrypt it
}

// Puller pulls images. Its methods may be called at the same time.
type Puller struct {
	cfg    Config
	mount  func(dir string) error // puts a tmpfs on a directory; replaced in tests
	life   context.Context        // of the pulls
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	jobs   map[string]*job // guarded by mu; by source
	serial int             // guarded by mu; of directories
	closed bool            // guarded by mu
}

// job is a pull.
type job struct {
	done chan struct{} // closed when layers and err are set
	end  func()        // ends it early

	layers []layer.Pulled
	err    error

	progress string // guarded by Puller.mu
	waiting  int    // guarded by Puller.mu; calls of Fetch
}

// New makes a Puller. Close ends it.
func New(cfg Config) *Puller {
	ctx, cancel := context.WithCancel(context.Background())
	return &Puller{cfg: cfg, mount: tmpfs, life: ctx, cancel: cancel, jobs: map[string]*job{}}
}

// memory is how much of the guest's memory layers may take.
const memory = "size=75%,mode=0711"

func tmpfs(dir string) error {
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, memory)
}

// Fetch waits until an image has been pulled, and begins to pull it if nothing does. When ctx ends before, the pull
// goes on, so that a later call joins it. Where the cause is errdefs.ErrAborted it ends instead, unless another call
// waits.
func (p *Puller) Fetch(ctx context.Context, source string) error {
	j, err := p.join(source)
	if err != nil {
		return err
	}
	select {
	case <-j.done:
		p.leave(source, j, j.err != nil)
		return j.err
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	if progress, ended := p.leave(source, j, errdefs.IsAborted(cause)); !ended {
		return fmt.Errorf("the guest pulls image %s still (%s), and the next attempt to create the container joins "+
			"it: %w", source, progress, cause)
	}
	j.end()
	<-j.done
	p.mu.Lock()
	defer p.mu.Unlock()
	err = closeAll(j.layers) // it may have ended well in the same moment
	j.layers = nil
	return errors.Join(fmt.Errorf("image %s is not pulled any more: %w", source, cause), err)
}

// leave counts a call out that has joined a pull. With forget, and if it is the last, the pull is given up.
func (p *Puller) leave(source string, j *job, forget bool) (progress string, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	j.waiting--
	ended = forget && j.waiting == 0
	if ended && p.jobs[source] == j {
		delete(p.jobs, source)
	}
	return j.progress, ended
}

// Take returns the layers of an image that was fetched, the topmost first. They are the caller's.
func (p *Puller) Take(source string) ([]layer.Pulled, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if j := p.jobs[source]; j != nil {
		select {
		case <-j.done:
			delete(p.jobs, source)
			return j.layers, j.err
		default:
		}
	}
	return nil, fmt.Errorf("image %s is not here (another request may have taken it): create the container again: %w",
		source, errdefs.ErrUnavailable)
}

// join returns the pull of an image, which it begins if there is none.
func (p *Puller) join(source string) (*job, error) {
	want, ok := p.cfg.Want(source)
	if !ok {
		return nil, fmt.Errorf("the policy has no image %.300q that the guest pulls: %w", source, errdefs.ErrPermissionDenied)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("the guest ends: %w", errdefs.ErrUnavailable)
	}
	if j := p.jobs[source]; j != nil {
		j.waiting++
		return j, nil
	}
	ctx, end := context.WithCancel(p.life)
	j := &job{done: make(chan struct{}), end: end, waiting: 1, progress: "starts coco-trust"}
	p.jobs[source] = j
	p.serial++
	name := strconv.Itoa(p.serial)
	p.wg.Go(func() {
		defer end()
		layers, err := p.run(ctx, j, name, source, want)
		p.finish(source, j, layers, err)
	})
	return j, nil
}

// finish notes the outcome of a pull. Nobody takes that of one which was given up.
func (p *Puller) finish(source string, j *job, layers []layer.Pulled, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.jobs[source] != j {
		err = errors.Join(err, closeAll(layers))
		layers = nil
	}
	if err != nil {
		err = fmt.Errorf("image %s: %w", source, err)
	}
	j.layers, j.err = layers, err
	close(j.done)
}

// run pulls an image into a directory of its own.
func (p *Puller) run(ctx context.Context, j *job, name, source string, want Image,
) (_ []layer.Pulled, err error) {
	dir, err := p.makeDir(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program, err := cotrust.Start(ctx, p.cfg.Program, wire.Setup{
		Initdata: p.cfg.Initdata, Pull: &wire.Pull{Source: source, Dir: dir},
	}, nil)
	if err != nil {
		return nil, err
	}
	defer program.End()
	var last wire.PullAnswer
	err = program.Talk(ctx, func(c io.ReadWriter) (err error) {
		last, err = p.talk(ctx, c, j, want)
		return err
	})
	if err == nil && last.Error != nil {
		err = fmt.Errorf("%w: %w", last.Error, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, p.after(j, err)
	}
	roots := want.Layers
	if want.Signed {
		if roots, err = rootsOf(last.Layers); err != nil {
			return nil, err
		}
	}
	return take(dir, last.Layers, roots)
}

// after says how far a pull was that has failed.
func (p *Puller) after(j *job, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Errorf("(%s) %w", j.progress, err)
}

// talk answers a coco-trust that pulls, and returns what it says last.
func (p *Puller) talk(ctx context.Context, c io.ReadWriter, j *job, img Image) (wire.PullAnswer, error) {
	for {
		var a wire.PullAnswer
		if err := wire.Read(c, &a); err != nil {
			return a, err
		}
		switch {
		case a.Error != nil, len(a.Layers) > 0:
			return a, nil
		case a.Need != "":
			if a.Need != p.cfg.Login && !slices.Contains(img.Keys, a.Need) {
				return a, fmt.Errorf("coco-trust asks for %.300q, which is neither a key of the image by the policy nor "+
					"initdata's login: %w", a.Need, errdefs.ErrPermissionDenied)
			}
			secret, err := p.cfg.Resource(ctx, a.Need)
			out := wire.Answer{Secret: secret}
			if err != nil {
				out = wire.Answer{Error: failure(err)}
			}
			err = wire.Write(c, out)
			clear(secret)
			if err != nil {
				return a, err
			}
		default:
			p.mu.Lock()
			j.progress = fmt.Sprintf("%.200s", a.Progress)
			p.mu.Unlock()
		}
	}
}

// failure is why a resource was not got.
func failure(err error) *wire.Failure {
	var f *wire.Failure
	if errors.As(err, &f) {
		return f
	}
	return &wire.Failure{Code: wire.Config, Text: err.Error()}
}

// makeDir makes a directory that coco-trust owns, in memory.
func (p *Puller) makeDir(name string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := os.Mkdir(p.cfg.Dir, 0o711)
	if err == nil {
		if err = p.mount(p.cfg.Dir); err != nil {
			return "", errors.Join(fmt.Errorf("memory for layers: %w", err), os.Remove(p.cfg.Dir))
		}
	} else if !errors.Is(err, os.ErrExist) {
		return "", err
	}
	dir := filepath.Join(p.cfg.Dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if os.Geteuid() != 0 {
		return dir, nil
	}
	return dir, os.Chown(dir, cotrust.User, cotrust.User)
}

// maxLayers is how many layers a root file system may have.
const maxLayers = 400

// rootsOf returns the root hashes that coco-trust has computed.
func rootsOf(made []wire.Layer) (out []string, err error) {
	if len(made) > maxLayers {
		return nil, fmt.Errorf("the image has %d layers, more than %d: %w", len(made), maxLayers,
			errdefs.ErrFailedPrecondition)
	}
	for _, l := range made {
		b, err := hex.DecodeString(l.RootHash)
		if err != nil || len(b) != len(verity.Params{}.RootHash) {
			return nil, fmt.Errorf("%.80q is no root hash: %w", l.RootHash, errdefs.ErrFailedPrecondition)
		}
		out = append(out, l.RootHash)
	}
	return out, nil
}

// take opens the files of layers that are those of the policy.
func take(dir string, made []wire.Layer, want []string) (out []layer.Pulled, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(out))
			out = nil
		}
	}()
	if len(made) != len(want) {
		return nil, fmt.Errorf("the image has %d layers, and the policy has %d of it: %w", len(made), len(want),
			errdefs.ErrFailedPrecondition)
	}
	for i, l := range made {
		if l.RootHash != want[i] {
			return out, fmt.Errorf("layer %d of %d from the top has root hash %.64q, and the policy has %s: %w", i+1, len(made),
				l.RootHash, want[i], errdefs.ErrFailedPrecondition)
		}
		p := verity.Params{Salt: verity.Salt, DataBlocks: l.DataBlocks, HashOffset: l.HashOffset}
		if _, err := hex.Decode(p.RootHash[:], []byte(want[i])); err != nil {
			return out, err
		}
		f, err := open(dir, l.File, p)
		if err != nil {
			return out, fmt.Errorf("layer %s: %w", want[i], err)
		}
		out = append(out, layer.Pulled{File: f, Params: p})
	}
	return out, nil
}

// open opens a layer's file: coco-trust could have put anything else in its place.
func open(dir, name string, p verity.Params) (*os.File, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	d := beneath.Dir(dir)
	path, err := d.Clean(filepath.Join(dir, filepath.Base(name)))
	if err != nil {
		return nil, err
	}
	at, err := d.Open(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	f, err := beneath.Reopen(at)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() < int64(p.Size()) { //nolint:gosec // Validate bounds it
		err = fmt.Errorf("its file has %d bytes, data and hash tree need %d", st.Size(), p.Size())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func closeAll(layers []layer.Pulled) error {
	var errs []error
	for _, l := range layers {
		errs = append(errs, l.File.Close())
	}
	return errors.Join(errs...)
}

// Close ends all pulls and gives up what nobody has taken.
func (p *Puller) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, j := range p.jobs {
		errs = append(errs, closeAll(j.layers))
	}
	clear(p.jobs)
	return errors.Join(errs...)
}

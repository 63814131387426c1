// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

const (
	// renewTimeout is longer than coco-trust may take for a secret with all attempts.
	renewTimeout = 11 * time.Minute
	// retryPause is when a secret that could not be renewed is asked for again, at the latest.
	retryPause = time.Minute
	// reportTimeout bounds the wait for coco-trust to take the answer to its request.
	reportTimeout = 5 * time.Second
	maxName       = 256
	maxReport     = 1000 // bytes of an error
)

// renewal is a container's files that are renewed. Until a new secret is there the file keeps the last one: it is never
// empty, partial or missing.
type renewal struct {
	store *Store
	name  string // of the container in the policy; "": it has no way to ask for anything
	spare string // where the next file is written, on the same tmpfs and outside what the container sees
	owner specs.User
	files []renewed
	end   chan struct{} // closed when the container is removed

	turn chan struct{} // its holder renews

	mu   sync.Mutex
	gone bool // guarded by mu: the files are being removed. The lock is held while a file in memory is replaced
}

// renewed is one of the files.
type renewed struct {
	policy.Secret
	at  string    // where it is in the guest
	due time.Time // zero: on request only
}

// addRenewed writes a file into a directory that becomes a mount: a rename in it replaces the file, which a mount of
// the file itself would not show.
func (b *batch) addRenewed(x policy.Secret) error {
	dir := path.Dir(x.File)
	at, ok := b.dirs[dir]
	if !ok {
		if err := b.makeDir(b.dir, b.undo); err != nil {
			return err
		}
		at = filepath.Join(b.dir, "dir"+strconv.Itoa(len(b.dirs)))
		if err := os.Mkdir(at, 0o755); err != nil { // of the container; the modes of files decide
			return err
		}
		if b.dirs == nil {
			b.dirs = map[string]string{}
		}
		b.dirs[dir] = at
		b.mounts = append(b.mounts, mountOn(dir, at))
	}
	f := renewed{Secret: x, at: filepath.Join(at, path.Base(x.File))}
	if every := x.RenewInterval(); every > 0 {
		f.due = time.Now().Add(every)
	}
	b.renewed = append(b.renewed, f)
	return writeFile(f.at, x, b.got[x.Resource], b.spec.Process.User)
}

// renewLater begins to renew the container's files.
func (b *batch) renewLater() {
	if len(b.renewed) == 0 {
		return
	}
	r := &renewal{
		store: b.Store, spare: filepath.Join(b.dir, "next"), owner: b.spec.Process.User, files: b.renewed,
		end: make(chan struct{}), turn: make(chan struct{}, 1),
	}
	if b.cfg.Name != nil {
		r.name = b.cfg.Name(b.id)
	}
	b.mu.Lock()
	if b.renewals == nil {
		b.renewals = map[string]*renewal{}
	}
	b.renewals[b.id] = r
	b.mu.Unlock()
	b.wg.Go(r.run)
	b.undo.Push("end renewals", func(context.Context) error {
		b.mu.Lock()
		delete(b.renewals, b.id)
		b.mu.Unlock()
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.gone {
			r.gone = true
			close(r.end)
		}
		return nil
	})
}

// run renews each file when it is due, until the container or the agent ends.
func (r *renewal) run() {
	for {
		next := r.next()
		if next.IsZero() {
			return
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-r.end:
			timer.Stop()
			return
		case <-r.store.life.Done():
			timer.Stop()
			return
		}
		if _, err := r.renew(false); err != nil {
			r.store.cfg.Log.Warn("a secret is not renewed, and the container keeps the last one", "error", err)
		}
	}
}

// next is when the first file is due.
func (r *renewal) next() (next time.Time) {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	for _, f := range r.files {
		if !f.due.IsZero() && (next.IsZero() || f.due.Before(next)) {
			next = f.due
		}
	}
	return next
}

// renew asks for the secrets that are due, or for all, and replaces the files whose secrets have changed. A failure of
// one does not keep the others from it.
func (r *renewal) renew(all bool) (changed int, err error) {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	var errs []error
	for i := range r.files {
		f := &r.files[i]
		if !all && (f.due.IsZero() || time.Until(f.due) > 0) {
			continue
		}
		did, err := r.renewFile(f)
		if did {
			changed++
		}
		pause := f.RenewInterval()
		if err != nil {
			pause = min(pause, retryPause)
			errs = append(errs, fmt.Errorf("secret %s: %w", f.Resource, err))
		}
		if pause > 0 {
			f.due = time.Now().Add(pause)
		}
	}
	return changed, errors.Join(errs...)
}

// renewFile gets a secret. The container's end does not interrupt it: that would end coco-trust, which others use.
func (r *renewal) renewFile(f *renewed) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(r.store.life, renewTimeout)
	defer cancel()
	secret, err := r.store.get(ctx, wire.Request{Resource: f.Resource})
	if err != nil {
		return false, err
	}
	defer clear(secret)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return false, fmt.Errorf("the container has been removed: %w", errdefs.ErrNotFound)
	}
	if same, err := r.has(f.at, secret); err != nil || same {
		return false, err
	}
	if err = writeFile(r.spare, f.Secret, secret, r.owner); err == nil {
		err = os.Rename(r.spare, f.at)
	}
	if err != nil {
		return false, errors.Join(err, ignoreAbsent(os.Remove(r.spare)))
	}
	return true, nil
}

// has says whether a file has a secret. Nothing but a file of the renewal's own directory is opened, and nothing longer
// than the secret is read.
func (r *renewal) has(at string, secret []byte) (bool, error) {
	found, err := beneath.Dir(filepath.Dir(r.spare)).Open(at)
	if err != nil {
		return false, err
	}
	defer found.Close()
	f, err := beneath.Reopen(found)
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() != int64(len(secret)) {
		return false, err
	}
	last := make([]byte, len(secret))
	defer clear(last)
	if _, err := io.ReadFull(f, last); err != nil {
		return false, err
	}
	return bytes.Equal(last, secret), nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Renew renews all files of a container, by its name in the policy, and tells how many have changed.
func (s *Store) Renew(name string) (changed int, err error) {
	s.mu.Lock()
	var r *renewal
	for _, x := range s.renewals {
		if x.name == name {
			r = x
		}
	}
	s.mu.Unlock()
	if r == nil {
		return 0, fmt.Errorf("container %s has no files that are renewed: %w", name, errdefs.ErrNotFound)
	}
	return r.renew(true)
}

// serveRenewals answers coco-trust, which passes on what containers ask for: the name of a container, with the end of a
// pipe for the answer.
func (s *Store) serveRenewals(way *net.UnixConn) {
	for {
		name := make([]byte, maxName)
		n, files, err := fdpass.Recv(way, name, 1)
		if err != nil || len(files) != 1 {
			return // coco-trust has ended
		}
		var out wire.Renewed
		if out.Changed, err = s.Renew(string(name[:n])); err != nil {
			out.Error = err.Error()
			out.Error = out.Error[:min(len(out.Error), maxReport)]
		}
		_ = files[0].SetWriteDeadline(time.Now().Add(reportTimeout))
		err = wire.Write(files[0], out)
		if err = errors.Join(err, files[0].Close()); err != nil {
			s.cfg.Log.Warn("coco-trust does not take the answer to a renewal", "error", err)
		}
	}
}

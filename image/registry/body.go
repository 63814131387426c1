// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

func (r Retry) defaults() Retry {
	if r.Attempts == 0 {
		r.Attempts = 6
	}
	if r.First == 0 {
		r.First = 500 * time.Millisecond
	}
	if r.Most == 0 {
		r.Most = 20 * time.Second
	}
	if r.Stall == 0 {
		r.Stall = 30 * time.Second
	}
	return r
}

// body reads a path of the repository to its end, over as many requests as it takes. One with a size knows its end;
// one without takes the first end that is none of a broken transfer.
type body struct {
	repo *Repository
	ctx  context.Context //nolint:containedctx // of the transfer that the body is
	path string
	size int64 // -1: unknown

	off    int64 // bytes that were read
	in     io.ReadCloser
	cancel context.CancelFunc // of the request
	fails  int                // in a row without a byte
}

// Close ends the transfer.
func (b *body) Close() error {
	if b.in == nil {
		return nil
	}
	b.cancel()
	err := b.in.Close()
	b.in = nil
	return err
}

// Read reads on after a break.
func (b *body) Read(p []byte) (int, error) {
	for {
		if b.off == b.size {
			return 0, io.EOF
		}
		if err := b.open(); err != nil {
			return 0, err
		}
		n, err := b.read(p)
		if n > 0 {
			b.off, b.fails = b.off+int64(n), 0
			if b.size >= 0 && b.off > b.size {
				return 0, fmt.Errorf("the registry sends more than the %d bytes of the manifest", b.size)
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) && b.size < 0 {
			return 0, io.EOF
		}
		_ = b.Close()
		if errors.Is(err, io.EOF) {
			err = errors.New("the registry ends the transfer early")
		}
		if err := b.wait(err, 0); err != nil {
			return 0, err
		}
	}
}

// read reads once, and breaks off when nothing comes.
func (b *body) read(p []byte) (int, error) {
	stalled := time.AfterFunc(b.repo.cfg.Retry.Stall, b.cancel)
	n, err := b.in.Read(p)
	if !stalled.Stop() && err != nil && b.ctx.Err() == nil {
		err = fmt.Errorf("nothing came for %v", b.repo.cfg.Retry.Stall)
	}
	return n, err
}

// wait waits before the next attempt, or returns why there is none. after is how long the registry asks to wait.
func (b *body) wait(why error, after time.Duration) error {
	if err := context.Cause(b.ctx); err != nil {
		return fmt.Errorf("%w (%w)", err, why)
	}
	at := ""
	if b.off > 0 {
		at = fmt.Sprintf(" after %d bytes", b.off)
	}
	b.fails++
	if final(why) || b.fails >= b.repo.cfg.Retry.Attempts {
		return fmt.Errorf("%d attempts%s: %w", b.fails, at, why)
	}
	pause := min(max(b.repo.cfg.Retry.First<<(b.fails-1), after), b.repo.cfg.Retry.Most)
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-b.ctx.Done():
		return fmt.Errorf("%w (%w)", context.Cause(b.ctx), why)
	}
}

// open makes sure that there is a transfer, at the right place.
func (b *body) open() error {
	for b.in == nil {
		after, err := b.request()
		if err == nil {
			return nil
		}
		if err := b.wait(err, after); err != nil {
			return err
		}
	}
	return nil
}

func (b *body) request() (after time.Duration, err error) {
	ctx, cancel := context.WithCancel(b.ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	header := http.Header{}
	if strings.HasPrefix(b.path, "/manifests/") {
		header.Set("Accept", accepted)
	}
	if b.off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
	}
	resp, err := b.repo.get(ctx, b.repo.base+b.path, header)
	if err != nil {
		return 0, err
	}
	skip := int64(0)
	switch resp.StatusCode {
	case http.StatusOK:
		skip = b.off // the registry cannot continue, or does not want to
	case http.StatusPartialContent:
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.off)) {
			err = &finalError{fmt.Errorf("the registry continues at %.60q, and byte %d was asked for",
				resp.Header.Get("Content-Range"), b.off)}
		}
	default:
		err = refusal(resp)
		if s, perr := strconv.Atoi(resp.Header.Get("Retry-After")); perr == nil && s > 0 && s < 1<<20 {
			after = time.Duration(s) * time.Second
		}
	}
	if err != nil {
		return after, errors.Join(err, resp.Body.Close())
	}
	b.in, b.cancel = resp.Body, cancel
	return 0, b.skip(skip)
}

// skip reads again what was read before.
func (b *body) skip(n int64) error {
	buf := make([]byte, min(n, 32<<10))
	for n > 0 {
		got, err := b.read(buf[:min(n, int64(len(buf)))])
		n -= int64(got)
		if err != nil {
			_ = b.Close()
			return fmt.Errorf("read again from the start: %w", err)
		}
	}
	return nil
}

// verified compares the bytes of a blob with its digest.
type verified struct {
	*body
	sum          hash.Hash
	digest, name string
	err          error
}

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.body.Read(p)
	v.sum.Write(p[:n])
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		if cerr := compare(v.digest, v.sum.Sum(nil)); cerr != nil {
			err = fmt.Errorf("blob %s of %s: %w", v.digest, v.name, cerr)
		}
	default:
		err = fmt.Errorf("blob %s of %s: %w", v.digest, v.name, err)
	}
	v.err = err
	return n, err
}

// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// grace is how long work may go on after its context has ended: a merge does not stop in the middle.
const grace = 30 * time.Second

// Do runs work on the layer's files, one at a time, and returns its error. The end of the context ends the wait for a
// turn. Work whose context has ended and that does not return is in a call that the kernel does not answer: a file
// system of the host is frozen, or its server is away. It is given up after a grace, so that engines which wait for the
// files go on. Until it returns after all, its turn is not over, and everything else is refused at once.
func (l *Layer) Do(ctx context.Context, work func() error) error {
	l.fate.Lock()
	stuck := l.stuck
	l.fate.Unlock()
	if stuck {
		return l.silent("earlier work there has not ended")
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for earlier work in %s: %w", l.dirs.Upper, context.Cause(ctx))
	}
	done, ended := make(chan error, 1), false
	go func() {
		err := work()
		l.fate.Lock()
		ended, l.stuck = true, false
		l.fate.Unlock()
		<-l.turn
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	over := time.NewTimer(l.grace)
	defer over.Stop()
	select {
	case err := <-done:
		return err
	case <-over.C:
	}
	l.fate.Lock()
	defer l.fate.Unlock()
	if l.stuck = !ended; l.stuck {
		return l.silent(fmt.Sprintf("work there has not ended within %s after its time was over", l.grace))
	}
	return <-done
}

func (l *Layer) silent(why string) error {
	return fmt.Errorf("the file system of %s does not answer: %s: %w", l.dirs.Upper, why, errdefs.ErrUnavailable)
}

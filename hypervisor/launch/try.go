// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/hypervisor/jail"
)

// Try runs a program with --version in a jail and says why it cannot, if it cannot.
func Try(ctx context.Context, binary string, o jail.Options) (err error) {
	p, err := Start(ctx, Options{Jail: &o})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, p.Kill())
		<-p.Done()
	}()
	if err := p.Exec(ctx, []string{binary, "--version"}, []string{"PATH=/usr/bin:/bin", "LANG=C"}, nil); err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return fmt.Errorf("%s --version does not end: %w", binary, context.Cause(ctx))
	}
	if status := p.ExitStatus(); status != "exit status 0" {
		return fmt.Errorf("%s --version: %s %s", binary, status, strings.TrimSpace(p.Stderr()))
	}
	return nil
}

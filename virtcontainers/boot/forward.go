// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"slices"
	"strings"

	"github.com/coco-shim/coco/api/contract"
)

// openLocalhost lets port-forward of a CRI pod through to the guest's loopback address. Without it
// the pod works all the same, so it is no error when the host cannot do it.
func (c *creation) openLocalhost(context.Context) error {
	open := c.opts.Host.Localhost
	if open == nil || c.opts.First != nil || !slices.Contains(strings.Fields(c.vmspec.Boot.Cmdline),
		contract.ParamPortForward) {
		return nil
	}
	gate, err := open(c.netns)
	if err != nil {
		c.log.Warn("port-forward to this pod will not work", "pod", c.opts.ID, "error", err)
		return nil
	}
	c.u.Push("close localhost", func(context.Context) error { return gate.Close() })
	c.Life.Spawn(func(ctx context.Context) { gate.Serve(ctx, c.Agent.DialService) })
	return nil
}

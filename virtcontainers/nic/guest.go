// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nic

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/network"
)

// Guest configures the network of the guest; *guest.Link implements it.
type Guest interface {
	// Call bounds a call in time, and gives its error name and class.
	Call(ctx context.Context, what string, fn func(context.Context) error) error
	TakesRules(ctx context.Context) (bool, error)
	UpdateInterface(context.Context, *agent.UpdateInterfaceRequest) (*types.Interface, error)
	UpdateRoutes(context.Context, *agent.UpdateRoutesRequest) (*agent.Routes, error)
	AddARPNeighbors(context.Context, *agent.AddARPNeighborsRequest) (*emptypb.Empty, error)
}

// canRoute refuses routing that the protocol of the guest's agent cannot express.
func (n *Set) canRoute(ctx context.Context, g network.Guest) error {
	if !g.NeedsRules() {
		return nil
	}
	takes, err := n.guest.TakesRules(ctx)
	if err != nil {
		return err
	}
	if !takes {
		return fmt.Errorf("the network namespace has routing rules, further tables or refused destinations, which the "+
			"guest's agent does not know: "+
			"take them away, or use coco's agent: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

// configure gives the guest's interfaces the addresses of the namespace's. With routes set it also replaces the
// guest's routing table, possibly by an empty one.
func (n *Set) configure(ctx context.Context, g network.Guest, routes bool) error {
	for _, i := range g.Interfaces {
		if err := n.updateInterface(ctx, i); err != nil {
			return err
		}
	}
	if routes {
		if err := n.canRoute(ctx, g); err != nil {
			return err
		}
		if err := n.guest.Call(ctx, "routes", func(ctx context.Context) error {
			_, err := n.guest.UpdateRoutes(ctx,
				&agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: g.Routes, Rules: g.Rules}})
			return err
		}); err != nil {
			return err
		}
	}
	if len(g.Neighbours) == 0 {
		return nil
	}
	return n.guest.Call(ctx, "neighbours", func(ctx context.Context) error {
		_, err := n.guest.AddARPNeighbors(ctx,
			&agent.AddARPNeighborsRequest{Neighbors: &agent.ARPNeighbors{ARPNeighbors: g.Neighbours}})
		return err
	})
}

func (n *Set) updateInterface(ctx context.Context, i *types.Interface) error {
	return n.guest.Call(ctx, "interface "+i.GetName(), func(ctx context.Context) error {
		_, err := n.guest.UpdateInterface(ctx, &agent.UpdateInterfaceRequest{Interface: i})
		return err
	})
}

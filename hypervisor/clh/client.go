// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/clh/unixhttp"
)

const (
	apiRoot      = "/api/v1/"
	maxReasons   = 16 // of an error
	maxReason    = 512
	maxErrorText = 200
)

// client makes calls of the VMM's API, each on a connection of its own.
type client struct{ socket string }

// apiError is the VMM's refusal of a call.
type apiError struct {
	call   string
	status int
	reason string
}

// Error is "vm.boot: the VMM's reasons".
func (e *apiError) Error() string {
	return fmt.Sprintf("%s: %s (status %d)", e.call, e.reason, e.status)
}

// Unwrap is the class of the error, nil if it has none.
func (e *apiError) Unwrap() error {
	switch e.status {
	case 400:
		return errdefs.ErrInvalidArgument
	case 404:
		return errdefs.ErrNotFound
	case 409:
		return errdefs.ErrAlreadyExists
	}
	return nil
}

// refused reports whether the VMM answered a call with an error.
func refused(err error) bool {
	var r *apiError
	return errors.As(err, &r)
}

func (c client) get(ctx context.Context, call string, out any) error {
	return c.call(ctx, "GET", call, nil, out)
}

func (c client) put(ctx context.Context, call string, in, out any, files ...*os.File) error {
	return c.call(ctx, "PUT", call, in, out, files...)
}

// call makes one call. An error that is no *apiError leaves open whether the VMM did it.
func (c client) call(ctx context.Context, method, call string, in, out any, files ...*os.File) error {
	req := unixhttp.Request{Method: method, Path: apiRoot + call, Files: files}
	if in != nil {
		var err error
		if req.Body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s: %w", call, err)
		}
	}
	r, err := unixhttp.Do(ctx, c.socket, req)
	if err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	if !r.OK() {
		return &apiError{call, r.Status, reasons(r.Body)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(r.Body, out); err != nil {
		return fmt.Errorf("%s: answer of %d bytes: %w", call, len(r.Body), err)
	}
	return nil
}

// reasons reads an error's body: a list, the outermost reason first, or in older versions text.
func reasons(body []byte) string {
	var chain clhapi.ErrorChain
	if json.Unmarshal(body, &chain) != nil || len(chain) == 0 {
		if len(body) == 0 {
			return "no reason was given"
		}
		return printable(string(body[:min(len(body), maxErrorText)]))
	}
	chain = chain[:min(len(chain), maxReasons)]
	for i, r := range chain {
		chain[i] = printable(r[:min(len(r), maxReason)])
	}
	return strings.Join(chain, ": ")
}

// printable makes the VMM's text fit for one line of a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, s)
}

// pciAddress is a device's place: the VMM's notation and the slot on the guest's first bus.
type pciAddress struct{ bdf, slot string }

// parseBDF reads "0000:00:05.0". Devices of ours are always on the first bus, function 0.
func parseBDF(s string) (pciAddress, error) {
	slot, ok := strings.CutPrefix(s, "0000:00:")
	slot, fn := strings.CutSuffix(slot, ".0")
	n, err := strconv.ParseUint(slot, 16, 8)
	if !ok || !fn || err != nil || len(slot) != 2 || n == 0 || n > 31 || slot != strings.ToLower(slot) {
		return pciAddress{}, fmt.Errorf("the VMM says that the device is at %.20q, which is no place on the first PCI bus", s)
	}
	return pciAddress{s, slot}, nil
}

// has reports whether a device is in the VMM's tree.
func has(info clhapi.VmInfo, name string) bool {
	_, device := info.DeviceTree[name]
	_, parent := info.DeviceTree[virtioParent+name]
	return device || parent
}

// addressOf finds a device in the VMM's tree: a virtio device is behind a PCI function of its own.
func addressOf(info clhapi.VmInfo, name string) (pciAddress, error) {
	node := info.DeviceTree[name]
	if node.PciBdf == "" {
		node = info.DeviceTree[virtioParent+name]
	}
	if node.PciBdf == "" {
		return pciAddress{}, fmt.Errorf("the VMM does not tell where device %s is", name)
	}
	return parseBDF(node.PciBdf)
}

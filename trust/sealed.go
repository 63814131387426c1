// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/attestation/sealed"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// unsealer opens sealed texts by the signers of the pod's policy, which the host cannot change.
type unsealer struct {
	keys   Keys
	policy func() (policy.Sealed, error)

	container string            // id of the last request
	known     map[string][]byte // keys of signers that the broker has given for it, by path
}

// signersOf reads whose signatures a document accepts.
func signersOf(text string) (policy.Sealed, error) {
	d, err := initdata.FromText([]byte(text))
	if err != nil {
		return policy.Sealed{}, err
	}
	p, err := policy.Load([]byte(d.Data[policy.FileName]))
	if err != nil {
		return policy.Sealed{}, err
	}
	return p.Pod.Sealed, p.Validate() // Load leaves out the checks of sealed secrets
}

// open opens the text of a request.
func (u *unsealer) open(ctx context.Context, req wire.Request) ([]byte, error) {
	accepted, err := u.policy()
	if err != nil {
		return nil, err
	}
	if req.Container != u.container || u.known == nil {
		u.container, u.known = req.Container, map[string][]byte{}
	}
	o := sealed.Opener{Keys: map[string][]byte{}, InsecureUnsigned: accepted.InsecureUnsigned}
	signers := map[string]bool{}
	for _, s := range accepted.Signers {
		o.Signers = append(o.Signers, s.Kid)
		if path, err := kbs.ParsePath(s.Kid); err == nil && s.X == "" {
			signers[path] = true
			continue
		}
		if o.Keys[s.Kid], err = json.Marshal(map[string]string{"kty": "EC", "crv": "P-256", "x": s.X, "y": s.Y}); err != nil {
			return nil, err
		}
	}
	o.Fetch = func(ctx context.Context, path string) ([]byte, error) {
		if b := u.known[path]; b != nil {
			return bytes.Clone(b), nil // the caller may wipe it
		}
		b, err := u.keys.Resource(ctx, path)
		if err == nil && signers[path] {
			u.known[path] = bytes.Clone(b)
		}
		return b, err
	}
	return o.Open(ctx, req.Sealed, req.Resource)
}

// sealedFailure is why a text was not opened, as the agent passes it on; nil if err is of another kind.
func sealedFailure(err error) *wire.Failure {
	var e *sealed.Error
	if !errors.As(err, &e) {
		return nil
	}
	text := e.Cause.Error()
	if e.Code == sealed.Fetch {
		text = failure(e.Cause).Error() // the broker's reason, with its code
	}
	if e.Resource != "" {
		text = "kbs:///" + e.Resource + ": " + text
	}
	return &wire.Failure{Code: string(e.Code), Text: fmt.Sprintf("sealed secret: %s", text)}
}

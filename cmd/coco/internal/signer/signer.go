// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package signer reads the signers of sealed secrets from the command line.
package signer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/coco-shim/coco/attestation/sealed"
	"github.com/coco-shim/coco/policy"
)

// Flag is the value of --signer.
type Flag struct{ Of *policy.Sealed }

// String is the default: none.
func (Flag) String() string { return "" }

// Type is shown in the help.
func (Flag) Type() string { return "signer" }

// Set adds a signer: by the resource of the key broker that has the key, or by a file with the key. The policy's own
// checks follow when the policy is there.
func (f Flag) Set(text string) error {
	x := policy.Signer{Kid: text}
	if !strings.HasPrefix(text, "kbs:") {
		b, err := os.ReadFile(text)
		if err != nil {
			return err
		}
		key, err := sealed.ReadPublicJWK(b)
		if err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		if x = (policy.Signer{Kid: key.Kid, X: key.X, Y: key.Y}); x.Kid == "" {
			return fmt.Errorf("%s: the key has no kid, by which sealed texts name it", text)
		}
		if strings.HasPrefix(x.Kid, "kbs:") {
			x.X, x.Y = "", "" // the broker has it
		}
	}
	f.Of.Signers = append(f.Of.Signers, x)
	return nil
}

// Check refuses signers without a sealed secret, and the other way round.
func Check(secrets map[string][]policy.Secret, of policy.Sealed) error {
	found := false
	for _, list := range secrets {
		found = found || slices.ContainsFunc(list, func(s policy.Secret) bool { return s.Sealed })
	}
	switch {
	case found && len(of.Signers) == 0:
		return errors.New("--secret …,sealed needs --signer: whose sealed texts are opened")
	case !found && len(of.Signers) > 0:
		return errors.New("--signer is for sealed secrets, and no --secret has the word sealed")
	}
	return nil
}

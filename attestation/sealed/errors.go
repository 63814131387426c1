// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sealed

import (
	"errors"
	"fmt"
)

// Code says why a sealed secret was not opened. It is for programs, and stable.
type Code string

// Codes of failures.
const (
	Malformed Code = "malformed"  // not the form that the package describes
	Algorithm Code = "algorithm"  // signed with something else than ES256
	Provider  Code = "provider"   // to be opened by another service than the key broker
	NoSigner  Code = "no-signer"  // unsigned, or signed by a key that is not among the accepted ones
	Signature Code = "signature"  // the signature is not that of the named key
	Moved     Code = "moved"      // it names another resource than the one that is allowed at its place
	NoKey     Code = "no-key"     // the signer's key is missing or unusable
	Fetch     Code = "fetch"      // the broker did not give the resource
	Decrypt   Code = "decryption" // the resource does not decrypt the envelope
)

// Error is a failure with its code. It holds neither secrets nor the sealed text.
type Error struct {
	Code Code
	// Resource is the resource that was to be opened, or fetched when that failed; empty if the text does not tell.
	Resource string
	Cause    error
}

// Error returns one sentence.
func (e *Error) Error() string {
	if e.Resource == "" {
		return fmt.Sprintf("sealed secret: %s: %v", e.Code, e.Cause)
	}
	return fmt.Sprintf("sealed secret for %s: %s: %v", uriOf(e.Resource), e.Code, e.Cause)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// coded makes an error with a code. A cause that has a code keeps it.
func coded(code Code, resource string, cause error) error {
	var e *Error
	if errors.As(cause, &e) {
		return e
	}
	return &Error{code, resource, cause}
}

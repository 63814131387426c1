// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coco-shim/coco/internal/portmux"
	"github.com/coco-shim/coco/virtcontainers/answers"
)

// Named prefixes an error with the operation, unless its text begins with it already.
func Named(what string, err error) error {
	if a, ok := err.(*agentError); ok { //nolint:errorlint // of the agent's words alone, which are not ours
		return fmt.Errorf("%s: %w", what, &agentError{strings.TrimPrefix(a.words, what+": "), a.class})
	}
	if strings.HasPrefix(err.Error(), what+":") {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Lost says whether an error is that of a connection whose other end is gone: of the agent's, or of a stream's, which
// on Cloud Hypervisor is a socket.
func Lost(err error) bool {
	for _, e := range []error{
		ttrpc.ErrClosed, answers.ErrProtocol, portmux.ErrLost, io.EOF, io.ErrUnexpectedEOF,
		unix.ECONNRESET, unix.EPIPE,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func isStatus(err error) bool {
	s, ok := status.FromError(err)
	return ok && s.Code() != codes.DeadlineExceeded && s.Code() != codes.Canceled
}

var classes = map[codes.Code]error{
	codes.NotFound:           errdefs.ErrNotFound,
	codes.AlreadyExists:      errdefs.ErrAlreadyExists,
	codes.InvalidArgument:    errdefs.ErrInvalidArgument,
	codes.FailedPrecondition: errdefs.ErrFailedPrecondition,
	codes.Unavailable:        errdefs.ErrUnavailable,
	codes.Unimplemented:      errdefs.ErrNotImplemented,
	codes.PermissionDenied:   errdefs.ErrPermissionDenied,
	codes.ResourceExhausted:  errdefs.ErrResourceExhausted,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
	codes.Canceled:           context.Canceled,
}

// agentError carries the agent's own text, cleaned by answers.Clean and marked as the guest's, and an errdefs class.
type agentError struct {
	words string
	class error
}

func (e *agentError) Error() string { return "guest: " + e.words }
func (e *agentError) Unwrap() error { return e.class }

// Classify gives an error that the agent answered its class, and marks its text as the guest's. Other errors are
// returned as they are.
func Classify(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	class := classes[s.Code()]
	if class == nil {
		class = errdefs.ErrUnknown
	}
	return &agentError{words: s.Message(), class: class}
}

// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coco-shim/coco/api/contract"
)

// oneAnswer is a VM whose guest writes one text to whoever connects.
type oneAnswer struct {
	VM
	text string
}

func (v oneAnswer) Dial(context.Context, uint32) (net.Conn, error) {
	host, guest := net.Pipe()
	go func() {
		_, _ = guest.Read(make([]byte, 64)) // the greeting
		_, _ = io.WriteString(guest, v.text)
		_ = guest.Close()
	}()
	return host, nil
}

func TestTheAgentsAnswerDecidesOnAPort(t *testing.T) {
	for _, tt := range []struct {
		answer, stream, service string
	}{
		{answer: contract.GreetingOK + "\n"},
		{contract.GreetingFull + "\n", "too many streams wait", "no: unavailable"},
		{"what\n", `answered "what"`, "what: unavailable"},
		{strings.Repeat("x", 600) + "\n", "more than 512 bytes", "more than 512 bytes"},
		{"o", "EOF", "EOF"},
	} {
		l := &Link{vm: oneAnswer{text: tt.answer}}
		c, n, err := l.DialStream(t.Context())
		check(t, "DialStream", c, err, tt.stream)
		if n != 1 && err == nil {
			t.Errorf("the first stream has the number %d", n)
		}
		c, err = l.DialService(t.Context(), 80)
		check(t, "DialService", c, err, tt.service)
	}
}

func check(t *testing.T, what string, c net.Conn, err error, want string) {
	t.Helper()
	if c != nil {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s() = %v, want an error with %q", what, err, want)
	}
}

func TestAnErrorOfTheAgentIsMarkedAndNamedOnce(t *testing.T) {
	err := Classify(status.Error(codes.NotFound, "start container c1: no such container"))
	if !errdefs.IsNotFound(err) || !strings.HasPrefix(err.Error(), "guest: ") {
		t.Errorf("Classify() = %v, want the guest's words and NotFound", err)
	}
	err = Named("start container c1", err)
	if got, want := err.Error(), "start container c1: guest: no such container"; got != want || !errdefs.IsNotFound(err) {
		t.Errorf("Named() = %q, want %q", got, want)
	}
	own := errors.New("start container c1: no time")
	if got := Named("start container c1", own); !errors.Is(got, own) || got.Error() != own.Error() {
		t.Errorf("Named() = %v, want it unchanged", got)
	}
}

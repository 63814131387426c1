// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package trust is the work of coco-trust: it proves to a key broker what its guest is, and gets secrets. The agent
// starts the program in pods that need it. Keys is the interface for everything that is served to others.
package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"

	"github.com/coco-shim/coco/attestation/guest"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/tpm2"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/config"
	"github.com/coco-shim/coco/trust/images"
	"github.com/coco-shim/coco/trust/wire"
)

// Keys is a guest's way to its broker and to its own evidence. Its methods may be called at the same time.
type Keys interface {
	// TEE is the type of this guest's evidence: snp, tdx, tpm or, with "insecure" in its initdata only, sample.
	TEE() string
	// Resource gets a secret, which is not empty. The path is repository/type/tag or the URI of it. Errors of the broker
	// are a *client.Error.
	Resource(ctx context.Context, path string) ([]byte, error)
	// Token attests anew and returns the broker's token with the key that it names.
	Token(ctx context.Context) (client.Token, error)
	// Evidence returns the JSON of evidence for 48 bytes. A caller on behalf of a workload must choose data that cannot
	// be taken for the agent's: a broker takes evidence for the SHA-384 of its messages.
	Evidence(ctx context.Context, data []byte) (json.RawMessage, error)
}

// Guest is the Keys of this guest. Close releases its connections.
type Guest struct {
	*client.Client
	attester guest.Attester
}

// New makes the Keys of the guest that a Setup describes. device is the open TPM with TEE "tpm", else nil. The error
// says what in initdata is wrong, or which device is missing.
func New(s wire.Setup, device io.ReadWriter) (*Guest, error) {
	d, err := initdata.FromText([]byte(s.Initdata))
	if err != nil {
		return nil, err
	}
	b, err := config.Parse(d.Data)
	if err != nil {
		return nil, err
	}
	a, err := attesterOf(s.TEE, b.Insecure, device)
	if err != nil {
		return nil, err
	}
	c, err := client.New(client.Config{
		URL: b.URL, CertPEM: []byte(b.CertPEM), Key: b.Key, InitData: s.Initdata, Attester: a, Timeout: b.Deadline,
	})
	if err != nil {
		return nil, err
	}
	return &Guest{c, a}, nil
}

// attesterOf never chooses another type than that of the platform.
func attesterOf(tee string, insecure bool, device io.ReadWriter) (guest.Attester, error) {
	switch tee {
	case "sample":
		if !insecure {
			return nil, fmt.Errorf("this platform can prove nothing, so a broker would release secrets to anyone: %s does "+
				"not say insecure = true", initdata.FileAA)
		}
		return guest.InsecureSample{}, nil
	case "tpm":
		if device == nil {
			return nil, errors.New("evidence of type tpm without a TPM")
		}
		return &guest.TPM{Open: func() (tpm2.TPM, func() error, error) {
			return tpm2.New(device), func() error { return nil }, nil
		}}, nil
	}
	return guest.New("/", tee)
}

// TEE is the type of this guest's evidence.
func (g *Guest) TEE() string { return g.attester.TEE() }

// Evidence returns evidence for 48 bytes.
func (g *Guest) Evidence(ctx context.Context, data []byte) (json.RawMessage, error) {
	return g.attester.Evidence(ctx, data)
}

// Serve answers the agent until it closes the connection. accepted says whose sealed texts are opened; it is called
// with the first of them.
func Serve(ctx context.Context, conn io.ReadWriter, k Keys, accepted func() (policy.Sealed, error)) error {
	u := &unsealer{keys: k, policy: sync.OnceValues(accepted)}
	for {
		var req wire.Request
		err := wire.Read(conn, &req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a request of the agent: %w", err)
		}
		a := answer(ctx, u, req)
		err = wire.Write(conn, a)
		clear(a.Secret)
		if err != nil {
			return fmt.Errorf("answer the agent: %w", err)
		}
	}
}

func answer(ctx context.Context, u *unsealer, req wire.Request) wire.Answer {
	var secret []byte
	var err error
	if req.Sealed == "" {
		secret, err = u.keys.Resource(ctx, req.Resource)
	} else {
		secret, err = u.open(ctx, req)
	}
	if err != nil {
		return wire.Answer{Error: failure(err)}
	}
	return wire.Answer{Secret: secret}
}

// failure is why there is no secret, as the agent passes it on.
func failure(err error) *wire.Failure {
	if f := sealedFailure(err); f != nil {
		return f
	}
	var e *client.Error
	if errors.As(err, &e) {
		return &wire.Failure{Code: string(e.Reason), Text: fmt.Sprintf("key broker, %s: %v", e.Phase, e.Cause)}
	}
	return &wire.Failure{Code: wire.Config, Text: err.Error()}
}

// Refuse answers each request of the agent with the same failure.
func Refuse(conn io.ReadWriter, why error) error {
	for {
		var req wire.Request
		err := wire.Read(conn, &req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = wire.Write(conn, wire.Answer{Error: failure(why)})
		}
		if err != nil {
			return fmt.Errorf("answer the agent: %w", err)
		}
	}
}

// Devices open what the agent has passed on; each is called once at most, and only where the Setup names it.
type Devices struct {
	TPM func() io.ReadWriter // with TEE "tpm"
	API func() *os.File      // with Workload
}

// pullMemory is how much memory a coco-trust that pulls should get by with. It grows beyond that for images of very
// many files.
const pullMemory = 24 << 20

// Run is the life of coco-trust: it reads the Setup from the agent, and serves it and, where the policy opens the
// workload API, containers.
func Run(ctx context.Context, conn io.ReadWriter, devices Devices) error {
	var s wire.Setup
	if err := wire.Read(conn, &s); err != nil {
		return fmt.Errorf("read the setup: %w", err)
	}
	if s.Pull != nil {
		debug.SetMemoryLimit(pullMemory)
		return images.Pull(ctx, conn, s, images.Options{})
	}
	if err := wire.Write(conn, wire.Hello{Insecure: insecure(s)}); err != nil {
		return fmt.Errorf("greet the agent: %w", err)
	}
	var device io.ReadWriter
	if s.TEE == "tpm" {
		device = devices.TPM()
	}
	g, broken := New(s, device)
	if broken == nil {
		defer g.Close()
	}
	if s.Workload {
		stop, err := serveWorkloads(ctx, s, g, broken, device, devices.API())
		if err != nil {
			return err
		}
		defer stop()
	}
	if broken != nil {
		return Refuse(conn, broken)
	}
	return Serve(ctx, conn, g, func() (policy.Sealed, error) { return signersOf(s.Initdata) })
}

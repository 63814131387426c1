// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/version"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/config"
	"github.com/coco-shim/coco/trust/wire"
	"github.com/coco-shim/coco/trust/workload"
)

// noBroker is the broker of a pod that has none, or whose initdata has a mistake.
type noBroker struct{ err error }

func (n noBroker) Resource(context.Context, string) ([]byte, error) { return nil, n.err }
func (n noBroker) Token(context.Context) (client.Token, error)      { return client.Token{}, n.err }

// serveWorkloads serves the workload API until stop is called. g is nil if broken says why there is no broker: evidence
// needs none.
func serveWorkloads(ctx context.Context, s wire.Setup, g *Guest, broken error, device io.ReadWriter, from *os.File,
) (stop func(), err error) {
	d, err := initdata.FromText([]byte(s.Initdata))
	if err != nil {
		return nil, err
	}
	p, err := policy.Load([]byte(d.Data[policy.FileName]))
	if err != nil {
		return nil, err
	}
	cfg := workload.Config{Policy: p, Version: version.Version}
	closeTokens := func() {}
	if broken != nil {
		cfg.Broker = noBroker{fmt.Errorf("[%s] %w", wire.Config, broken)}
		cfg.Tokens = cfg.Broker
		b, _ := config.Parse(d.Data) // what is wrong in it, broken says
		if a, err := attesterOf(s.TEE, b.Insecure, device); err == nil {
			cfg.Attester = a
		}
	} else {
		tokens, err := New(s, device)
		if err != nil {
			return nil, err
		}
		closeTokens = tokens.Close
		cfg.Broker, cfg.Tokens, cfg.Attester = g, tokens, g
	}
	closeAzure, err := openAzure(&cfg, s.TEE, d, device)
	if err != nil {
		closeTokens()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = workload.New(cfg).Serve(ctx, from) // the agent notices that the way is closed, and starts the next coco-trust
	}()
	return func() {
		cancel()
		<-ended
		closeAzure()
		closeTokens()
	}, nil
}

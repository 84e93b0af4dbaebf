// This file answers: how does an operator's program register a workload, and
// when does that workload's node serve it?
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// dialAdmin opens the server's local API: a unix socket without TLS, whose
// callers are operators because the file's mode says so.
func dialAdmin(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+strings.TrimPrefix(path, "unix:"), grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func runRegister(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("register", flag.ContinueOnError)
	socket := flags.String("admin-socket", "", "the server's admin socket")
	id := flags.String("spiffe-id", "", "SPIFFE ID of the workload")
	parent := flags.String("parent", "", "SPIFFE ID of its node; empty means every attested node that is not banned")
	selector := flags.String("selector", "", "selector, such as unix:uid:0")
	x509TTL := flags.Int("x509-ttl", 0, "lifetime of its X509-SVIDs in seconds; 0 means the server's default")
	jwtTTL := flags.Int("jwt-ttl", 0, "lifetime of its JWT-SVIDs in seconds; 0 means the server's default")
	wait := flags.Duration("wait", 0, "wait at most this long until the Workload API serves it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := required(flags, "admin-socket", "spiffe-id", "selector"); err != nil {
		return err
	}
	workload, err := spiffeid.FromString(*id)
	if err != nil {
		return fmt.Errorf("--spiffe-id: %w", err)
	}
	selectorType, selectorValue, _ := strings.Cut(*selector, ":")

	conn, err := dialAdmin(*socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	parents, err := findParents(ctx, conn, *parent)
	if err != nil {
		return err
	}
	for _, node := range parents {
		response, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
			ParentId:    node,
			SpiffeId:    protoID(workload),
			Selectors:   []*types.Selector{{Type: selectorType, Value: selectorValue}},
			X509SvidTtl: int32(*x509TTL),
			JwtSvidTtl:  int32(*jwtTTL),
		}}})
		if err != nil {
			return err
		}
		result := response.GetResults()[0]
		if code := codes.Code(result.GetStatus().GetCode()); code != codes.OK && code != codes.AlreadyExists {
			return fmt.Errorf("create entry under %s: %s", idString(node), result.GetStatus().GetMessage())
		}
		if err := emit(map[string]any{"entry_id": result.GetEntry().GetId(), "parent_id": idString(node)}); err != nil {
			return err
		}
	}
	if *wait == 0 {
		return nil
	}
	return waitUntilServed(ctx, workload, *wait)
}

func findParents(ctx context.Context, conn *grpc.ClientConn, parent string) ([]*types.SPIFFEID, error) {
	if parent != "" {
		id, err := spiffeid.FromString(parent)
		if err != nil {
			return nil, fmt.Errorf("--parent: %w", err)
		}
		return []*types.SPIFFEID{protoID(id)}, nil
	}
	agents, err := agentv1.NewAgentClient(conn).ListAgents(ctx, &agentv1.ListAgentsRequest{})
	if err != nil {
		return nil, err
	}
	var parents []*types.SPIFFEID
	for _, agent := range agents.GetAgents() {
		if !agent.GetBanned() {
			parents = append(parents, agent.GetId())
		}
	}
	if len(parents) == 0 {
		return nil, errors.New("no node is attested")
	}
	return parents, nil
}

func waitUntilServed(ctx context.Context, workload spiffeid.ID, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	started := time.Now()
	for {
		svids, err := workloadapi.FetchX509SVIDs(ctx)
		for _, svid := range svids {
			if svid.ID == workload {
				return emit(map[string]any{"served_after_seconds": time.Since(started).Seconds()})
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the Workload API did not serve %s within %s: %w", workload, bound, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

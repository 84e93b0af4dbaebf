// This file answers: may each kind of caller call each method, and no other?
//
// The methods are those of the SDK's service descriptors: one without a row here
// fails the suite, and so does a row without a method. Who may call what is
// SPIRE's default policy.
package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// kind is what a caller is to the server.
type kind int

const (
	local                kind = 1 << iota // over the admin socket
	adminByEntry                          // an X509-SVID of an entry with the admin flag
	adminByConfiguration                  // an X509-SVID that the configuration names
	agent                                 // an attested node
	downstream                            // an X509-SVID of an entry with the downstream flag
	plain                                 // any other X509-SVID
	stranger                              // no X509-SVID
)

const (
	operators = local | adminByEntry | adminByConfiguration
	anybody   = operators | agent | downstream | plain | stranger
	nobody    = kind(0)
)

func kinds() []kind {
	return []kind{local, adminByEntry, adminByConfiguration, agent, downstream, plain, stranger}
}

func (k kind) String() string {
	switch k {
	case local:
		return "local"
	case adminByEntry:
		return "admin-by-entry"
	case adminByConfiguration:
		return "admin-by-configuration"
	case agent:
		return "agent"
	case downstream:
		return "downstream"
	case plain:
		return "workload"
	case stranger:
		return "stranger"
	}
	return fmt.Sprintf("kind(%b)", int(k))
}

// row is who may call a method, and what an empty request is answered with then.
// Everybody else gets the code refused.
type row struct {
	allowed  kind
	admitted codes.Code
	refused  codes.Code
}

func allowed(who kind, admitted codes.Code) row {
	return row{who, admitted, codes.PermissionDenied}
}

// services are those of the server API.
func services() []grpc.ServiceDesc {
	return []grpc.ServiceDesc{
		agentv1.Agent_ServiceDesc,
		bundlev1.Bundle_ServiceDesc,
		debugv1.Debug_ServiceDesc,
		entryv1.Entry_ServiceDesc,
		localauthorityv1.LocalAuthority_ServiceDesc,
		loggerv1.Logger_ServiceDesc,
		svidv1.SVID_ServiceDesc,
		trustdomainv1.TrustDomain_ServiceDesc,
		healthv1.Health_ServiceDesc,
	}
}

func matrix() map[string]row {
	const ok, invalid, unimplemented = codes.OK, codes.InvalidArgument, codes.Unimplemented
	return map[string]row{
		"Agent/CountAgents":     allowed(operators, ok),
		"Agent/ListAgents":      allowed(operators, ok),
		"Agent/GetAgent":        allowed(operators, invalid),
		"Agent/DeleteAgent":     allowed(operators, invalid),
		"Agent/BanAgent":        allowed(operators, invalid),
		"Agent/CreateJoinToken": allowed(operators, invalid),
		"Agent/AttestAgent":     allowed(anybody, invalid),
		"Agent/RenewAgent":      allowed(agent, invalid),
		"Agent/PostStatus":      allowed(agent, ok),

		"Entry/CountEntries":          allowed(operators, ok),
		"Entry/ListEntries":           allowed(operators, ok),
		"Entry/GetEntry":              allowed(operators, invalid),
		"Entry/BatchCreateEntry":      allowed(operators, ok),
		"Entry/BatchUpdateEntry":      allowed(operators, ok),
		"Entry/BatchDeleteEntry":      allowed(operators, ok),
		"Entry/GetAuthorizedEntries":  allowed(agent, ok),
		"Entry/SyncAuthorizedEntries": allowed(agent, ok),

		"SVID/MintX509SVID":        allowed(operators, invalid),
		"SVID/MintJWTSVID":         allowed(operators, invalid),
		"SVID/MintWITSVID":         allowed(operators, unimplemented),
		"SVID/BatchNewX509SVID":    allowed(agent, invalid),
		"SVID/NewJWTSVID":          allowed(agent, codes.NotFound),
		"SVID/BatchNewWITSVID":     allowed(agent, unimplemented),
		"SVID/NewDownstreamX509CA": allowed(downstream, invalid),

		"Bundle/GetBundle":                  allowed(anybody, ok),
		"Bundle/GetFederatedBundle":         allowed(operators|agent, invalid),
		"Bundle/CountBundles":               allowed(operators, ok),
		"Bundle/AppendBundle":               allowed(operators, invalid),
		"Bundle/ListFederatedBundles":       allowed(operators, ok),
		"Bundle/BatchCreateFederatedBundle": allowed(operators, ok),
		"Bundle/BatchUpdateFederatedBundle": allowed(operators, ok),
		"Bundle/BatchSetFederatedBundle":    allowed(operators, ok),
		"Bundle/BatchDeleteFederatedBundle": allowed(operators, ok),
		"Bundle/PublishJWTAuthority":        allowed(downstream, invalid),
		"Bundle/PublishWITAuthority":        allowed(downstream, unimplemented),

		"TrustDomain/ListFederationRelationships":       allowed(operators, ok),
		"TrustDomain/GetFederationRelationship":         allowed(operators, invalid),
		"TrustDomain/BatchCreateFederationRelationship": allowed(operators, ok),
		"TrustDomain/BatchUpdateFederationRelationship": allowed(operators, ok),
		"TrustDomain/BatchDeleteFederationRelationship": allowed(operators, ok),
		"TrustDomain/RefreshBundle":                     allowed(operators, invalid),

		"LocalAuthority/GetX509AuthorityState":       allowed(operators, ok),
		"LocalAuthority/PrepareX509Authority":        allowed(operators, ok),
		"LocalAuthority/ActivateX509Authority":       allowed(operators, invalid),
		"LocalAuthority/TaintX509Authority":          allowed(operators, invalid),
		"LocalAuthority/RevokeX509Authority":         allowed(operators, invalid),
		"LocalAuthority/TaintX509UpstreamAuthority":  allowed(operators, codes.FailedPrecondition),
		"LocalAuthority/RevokeX509UpstreamAuthority": allowed(operators, codes.FailedPrecondition),
		"LocalAuthority/GetJWTAuthorityState":        allowed(operators, ok),
		"LocalAuthority/PrepareJWTAuthority":         allowed(operators, ok),
		"LocalAuthority/ActivateJWTAuthority":        allowed(operators, invalid),
		"LocalAuthority/TaintJWTAuthority":           allowed(operators, invalid),
		"LocalAuthority/RevokeJWTAuthority":          allowed(operators, invalid),
		"LocalAuthority/GetWITAuthorityState":        allowed(operators, unimplemented),
		"LocalAuthority/PrepareWITAuthority":         allowed(operators, unimplemented),
		"LocalAuthority/ActivateWITAuthority":        allowed(operators, unimplemented),
		"LocalAuthority/TaintWITAuthority":           allowed(operators, unimplemented),
		"LocalAuthority/RevokeWITAuthority":          allowed(operators, unimplemented),

		// SPIRE's TCP port does not know these services at all.
		"Logger/GetLogger":     allowed(local, ok),
		"Logger/SetLogLevel":   allowed(local, invalid),
		"Logger/ResetLogLevel": allowed(local, ok),
		"Debug/GetInfo":        allowed(local, ok),
		"Health/Check":         allowed(local, ok),
		"Health/Watch":         allowed(local, ok),
		// Of grpc.health.v1, Passant serves what probes call.
		"Health/List": {nobody, ok, unimplemented},
	}
}

// short is a method as its row names it.
func short(service, method string) string {
	return service[strings.LastIndexByte(service, '.')+1:] + "/" + method
}

func (s *suite) matrixChecks(ctx context.Context, everybody map[kind]*client) {
	rows := matrix()
	for _, service := range services() {
		var streams []string
		for _, stream := range service.Streams {
			streams = append(streams, stream.StreamName)
		}
		var methods []string
		for _, method := range service.Methods {
			methods = append(methods, method.MethodName)
		}
		methods = append(methods, streams...)
		for _, method := range methods {
			name := short(service.ServiceName, method)
			s.check(ctx, "matrix/"+name, func(c *check) {
				row, known := rows[name]
				c.that(known, "the SDK has this method, and it has no row here")
				delete(rows, name)
				for _, kind := range kinds() {
					caller := everybody[kind]
					c.that(caller != nil, "there is no %s", kind)
					want := row.refused
					if row.allowed&kind != 0 {
						want = row.admitted
					}
					c.code(callEmpty(c, caller, service, method, slices.Contains(streams, method)), want, "as "+kind.String())
				}
			})
		}
	}
	s.check(ctx, "matrix/every-row-is-a-method", func(c *check) {
		for name := range rows {
			c.failf("the SDK has no method %s", name)
		}
	})
}

// callEmpty calls a method with an empty request and waits for one answer.
func callEmpty(c *check, caller *client, service grpc.ServiceDesc, method string, isStream bool) error {
	described, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.ServiceName))
	c.ok(err, "find the service")
	descriptor := described.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	c.that(descriptor != nil, "the service's description lacks the method")
	request, response := newMessage(c, descriptor.Input()), newMessage(c, descriptor.Output())
	path := "/" + service.ServiceName + "/" + method
	if !isStream {
		return caller.conn.Invoke(c.ctx, path, request, response)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stream, err := caller.conn.NewStream(ctx, &grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}, path)
	if err != nil {
		return err
	}
	// A failed send is explained by the next receive.
	_ = stream.SendMsg(request)
	if !descriptor.IsStreamingClient() {
		_ = stream.CloseSend()
	}
	return stream.RecvMsg(response)
}

func newMessage(c *check, descriptor protoreflect.MessageDescriptor) proto.Message {
	found, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	c.ok(err, "find "+string(descriptor.FullName()))
	return found.New().Interface()
}
